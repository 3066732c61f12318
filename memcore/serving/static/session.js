// One session: its facts, the passage that is chosen, and its counters.
"use strict";

(() => {
  const { element, count, counted } = memcore;
  const id = (name) => document.getElementById(name);
  const MEBI = 2 ** 20;
  let shown = null;
  let wanted = 0;

  function facts(session) {
    const stored = session.retrievals.length;
    const gone = session.held.filter((held) => held === 0).length;
    const rows = [
      ["Tokens read", count(session.tokens)],
      ["Passages", `${count(stored)} of ${count(session.config.chunk_size)} tokens`],
      ["Evicted", count(gone)],
      ["Size", `${(session.bytes / MEBI).toFixed(1)} MiB`],
      ["Window", `${count(session.config.window)} tokens, and the first ${count(session.config.sinks)}`],
      ["Model", session.model.replace(/^\/.*\//, "") || "not named"],
      ["Changed", session.changed.slice(0, 16).replace("T", " ")],
    ];
    if (session.unfinished) {
      rows.push(["Unfinished", `${count(session.unfinished.done)} of ${count(session.unfinished.tokens)} tokens of a text`]);
    }
    if (!session.tokenizer) rows.push(["Tokenizer", "not on this machine: token ids are shown"]);
    const pairs = rows.map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })));
    id("facts").replaceChildren(...pairs);
  }

  function counters(session) {
    id("layers").replaceChildren(
      ...session.layers.map((layer) =>
        element(
          "tr",
          {},
          element("th", { scope: "row", textContent: layer.layer }),
          ...[layer.chunks, layer.stored - layer.chunks, layer.retrievals].map((n) => element("td", { className: "number", textContent: count(n) })),
          element("td", { className: "number", textContent: (layer.bytes / MEBI).toFixed(1) }),
        ),
      ),
    );
    const bins = [];
    for (const times of session.retrievals) {
      const bin = times === 0 ? 0 : 1 + Math.floor(Math.log2(times));
      bins[bin] = (bins[bin] ?? 0) + 1;
    }
    const largest = Math.max(1, ...bins.map((n) => n ?? 0));
    id("histogram").replaceChildren(
      ...Array.from(bins, (n, bin) => {
        const low = bin ? 2 ** (bin - 1) : 0;
        const high = bin ? 2 ** bin - 1 : 0;
        const bar = element("span", { className: "bar" });
        bar.style.width = `${(100 * (n ?? 0)) / largest}%`;
        return element(
          "tr",
          {},
          element("th", { scope: "row", textContent: low === high ? count(low) : `${count(low)} to ${count(high)}` }),
          element("td", { className: "number", textContent: count(n ?? 0) }),
          element("td", { className: "bars", ariaHidden: "true" }, bar),
        );
      }),
    );
  }

  async function most(session) {
    const order = session.retrievals.map((times, index) => [times, index]).filter(([times]) => times);
    order.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const best = order.slice(0, 5);
    const texts = await Promise.all(best.map(([, index]) => memcore.source.text(session.name, index + 1, 1)));
    if (shown !== session) return;
    const { sinks, chunk_size: length } = session.config;
    id("most").replaceChildren(
      ...best.map(([times, index], place) => {
        const start = sinks + index * length;
        const button = element("button", { type: "button", className: "where", textContent: count(start) });
        button.addEventListener("click", () => memcore.strip.goTo(start));
        return element(
          "tr",
          {},
          element("td", {}, button),
          element("td", { className: "number", textContent: count(times) }),
          element("td", { className: "quoted", textContent: texts[place][0].trim() }),
        );
      }),
    );
  }

  async function passage(cell, index) {
    const turn = ++wanted;
    const state =
      cell.kind === "window"
        ? "still in the window"
        : cell.held === 0
          ? "evicted"
          : `retrieved ${counted(cell.retrievals, "time", "times")}, held in ${counted(cell.held, "layer", "layers")}`;
    id("passage-where").textContent = `Tokens ${count(cell.start)} to ${count(cell.end - 1)}: ${state}`;
    const [text] = await memcore.source.text(shown.name, index + 1, 1);
    if (turn === wanted) id("passage-text").textContent = text ?? "";
  }

  memcore.session = {
    name: () => shown?.name,
    async show(session) {
      shown = session;
      id("session-name").textContent = session.name;
      facts(session);
      counters(session);
      id("session").hidden = false; // before the strip is drawn, which needs its width
      id("passage-where").textContent = id("passage-text").textContent = "";
      memcore.strip.show(session, (cell, index) => passage(cell, index).catch(memcore.complain));
      await most(session);
    },
  };
})();
