// The page as a whole: which session is shown, and asking.
"use strict";

(() => {
  const { element, count, counted, source } = memcore;
  const id = (name) => document.getElementById(name);
  const HEARD_EVERY = 1500; // milliseconds between two announcements of what was written
  let under_way = null; // AbortController of the question that is being answered
  let opened = 0; // sessions opened so far: what comes late of an earlier one is not shown
  let opening = Promise.resolve(); // settled once the session that was opened last is shown

  memcore.complain = (error) => {
    id("problem").textContent = error.message;
    id("problem").hidden = false;
  };

  function at_ease() {
    id("problem").hidden = true;
  }

  function open(name) {
    const shown = show(name);
    opening = shown.catch(() => {});
    return shown;
  }

  async function show(name) {
    const turn = ++opened;
    at_ease();
    under_way?.abort();
    for (const button of id("sessions").querySelectorAll("button")) {
      if (button.dataset.name === name) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const session = await source.session(name);
    if (turn !== opened) return;
    memcore.exchanges.clear();
    id("progress").textContent = "";
    const shown = memcore.session.show(session);
    history.replaceState(null, "", `#${encodeURIComponent(name)}`);
    document.title = `${name} – memcore`;
    const recorded = source.exchanges(name);
    for (const { question, tokens, seconds } of recorded) {
      const exchange = memcore.exchanges.begin(name, question);
      tokens.forEach((token) => exchange.add(token));
      exchange.note.textContent = took(tokens.length, seconds);
    }
    id("no-questions").hidden = source.ask !== null || recorded.length > 0;
    await shown;
  }

  function took(tokens, seconds) {
    return `${counted(tokens, "token", "tokens")} in ${seconds.toFixed(1)} s. Choose one to see what it was written from.`;
  }

  async function ask(event) {
    event.preventDefault();
    const question = id("question").value;
    if (!question.trim() || under_way) return;
    at_ease();
    const stop = (under_way = new AbortController());
    id("send").disabled = true;
    id("stop").disabled = false;
    await opening; // of another session, which clears what was asked before
    const session = memcore.session.name();
    id("progress").textContent = "Waiting for the model …";
    id("heard").textContent = "";
    const exchange = memcore.exchanges.begin(session, question);
    let unheard = "";
    let heard_at = Date.now();
    let ended = false;
    const hear = () => {
      id("heard").append(element("span", { textContent: unheard }));
      unheard = "";
      heard_at = Date.now();
    };
    try {
      const request = { session, question, max_new_tokens: Number(id("longest").value) };
      for await (const told of source.ask(request, stop.signal)) {
        if (told.type === "begin") {
          id("progress").textContent = "Reading the question …";
        } else if (told.type === "reading") {
          id("progress").textContent = `Reading the question: ${count(told.done)} of ${count(told.total)} tokens`;
        } else if (told.type === "token") {
          if (!exchange.tokens.length) id("progress").textContent = "Answering …";
          exchange.add(told);
          unheard += told.text;
          if (Date.now() - heard_at > HEARD_EVERY && unheard.trim()) hear();
        } else if (told.type === "end") {
          ended = true;
          exchange.note.textContent = took(told.tokens, told.seconds);
          id("progress").textContent = "Answered.";
        }
      }
      if (!ended) throw new Error("the server ended the answer");
    } catch (error) {
      if (error.name === "AbortError") id("progress").textContent = exchange.note.textContent = "Stopped.";
      else {
        id("progress").textContent = "";
        if (!exchange.tokens.length) exchange.element.remove();
        memcore.complain(error);
      }
    } finally {
      hear();
      under_way = null;
      id("send").disabled = false;
      id("stop").disabled = true;
    }
  }

  async function begin() {
    const memory = await source.memory();
    id("served").textContent = [memory.path, memory.model ?? (source.ask ? "no model, reading only" : "report")]
      .filter(Boolean)
      .join(" · ");
    id("ask").hidden = source.ask === null || memory.model === null;
    id("no-sessions").hidden = memory.sessions.length > 0;
    id("sessions").replaceChildren(
      ...memory.sessions.map((session) => {
        const button = element("button", { type: "button" });
        button.append(
          element("span", { className: "name", textContent: session.name }),
          element("span", { className: "detail", textContent: `${count(session.tokens)} tokens` }),
        );
        button.dataset.name = session.name;
        button.addEventListener("click", () => open(session.name).catch(memcore.complain));
        return element("li", {}, button);
      }),
    );
    const names = memory.sessions.map((session) => session.name);
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (names.length) await open(names.includes(wanted) ? wanted : names[0]);
  }

  id("ask").addEventListener("submit", ask);
  id("stop").addEventListener("click", () => under_way?.abort());
  id("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      id("ask").requestSubmit();
    }
  });
  begin().catch(memcore.complain);
})();
