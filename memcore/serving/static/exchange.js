// A question and its answer, token by token, and what the token that is chosen was written from.
"use strict";

(() => {
  const { element, count, percent } = memcore;
  const LISTED = 12;

  function label(token) {
    const written = token.text.trim() || token.token;
    return `${written}, ${percent(token.memory)} from memory`;
  }

  function spread(token) {
    const parts = [
      ["memory", "memory", token.memory],
      ["first-tokens", "first tokens", token.sinks],
      ["in-window", "window", token.window],
    ];
    const bar = element("div", { className: "spread", ariaHidden: "true" });
    const words = element("p", { className: "shares" });
    for (const [kind, name, share] of parts) {
      const part = element("span", { className: `swatch ${kind}` });
      part.style.flexGrow = share;
      bar.append(part);
      words.append(element("span", {}, element("span", { className: `swatch ${kind}` }), `${name} ${percent(share)}`));
    }
    return [bar, words];
  }

  // What stands on a token's button: what cannot be seen is named.
  function face(token) {
    if (token.text.trim()) return token.text;
    if (token.text.includes("\n")) return "↵";
    return token.text || (token.token.startsWith("<") ? token.token : "…");
  }

  // One answer. Its tokens are buttons; Tab comes to one of them, and arrows move among them.
  class Exchange {
    constructor(session, question) {
      this.session = session;
      this.tokens = [];
      this.buttons = [];
      this.answer = element("div", { className: "answer", role: "group", ariaLabel: "Answer, token by token" });
      this.note = element("p", { className: "note" });
      this.read = element("div", { className: "read", hidden: true });
      this.element = element(
        "article",
        { className: "exchange" },
        element("h4", { className: "question", textContent: question }),
        element("div", { className: "pair" }, element("div", {}, this.answer, this.note), this.read),
      );
      this.answer.addEventListener("click", (event) => {
        const index = this.buttons.indexOf(event.target);
        if (index >= 0) this.choose(index).catch(memcore.complain);
      });
      this.answer.addEventListener("keydown", (event) => this.move(event));
    }

    add(token) {
      const shown = face(token);
      const button = element("button", {
        type: "button",
        className: shown === token.text ? "token" : "token special",
        textContent: shown,
        ariaLabel: label(token),
        ariaPressed: "false",
        tabIndex: this.buttons.length ? -1 : 0,
      });
      button.style.setProperty("--heat", Math.min(1, token.memory).toFixed(3));
      this.tokens.push(token);
      this.buttons.push(button);
      this.answer.append(button);
    }

    move(event) {
      const at = this.buttons.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.buttons.length - 1 }[event.key];
      if (at < 0 || to === undefined || !this.buttons[to]) return;
      event.preventDefault();
      this.buttons[at].tabIndex = -1;
      this.buttons[to].tabIndex = 0;
      this.buttons[to].focus();
    }

    async choose(index) {
      memcore.exchanges.unchoose();
      memcore.exchanges.chosen = this;
      const [token, button] = [this.tokens[index], this.buttons[index]];
      for (const each of this.buttons) each.tabIndex = -1;
      button.tabIndex = 0;
      button.ariaPressed = "true";
      memcore.strip.light(new Map(token.passages.map((passage) => [passage.start, passage.share])));
      await this.show(token);
    }

    unchoose() {
      for (const button of this.buttons) button.ariaPressed = "false";
      this.read.hidden = true;
    }

    async show(token) {
      const listed = token.passages.slice(0, LISTED);
      const rest = token.memory - listed.reduce((sum, passage) => sum + passage.share, 0);
      const list = element("ol", { className: "passages" });
      const texts = listed.map((passage) => {
        const where = element("button", { type: "button", className: "where", textContent: `token ${count(passage.start)}` });
        where.addEventListener("click", () => memcore.strip.goTo(passage.start));
        const layers = Object.entries(passage.layers).map(([layer, share]) => `${layer}: ${percent(share)}`);
        const text = element("p", { className: "quoted" });
        const head = element("p", {}, element("strong", { textContent: percent(passage.share) }), " ", where);
        head.append(" ", element("span", { className: "by-layer", textContent: `layer ${layers.join(", ")}` }));
        list.append(element("li", {}, head, text));
        return text;
      });
      const written = token.text.trim() || token.token;
      const clear = element("button", { type: "button", textContent: "Back to the counters" });
      clear.addEventListener("click", () => {
        memcore.exchanges.unchoose();
        memcore.strip.light(null);
        this.buttons[this.tokens.indexOf(token)].focus();
      });
      this.read.replaceChildren(
        element("h5", { textContent: `“${written}”, token ${count(token.position)}` }),
        ...spread(token),
        listed.length ? list : element("p", { textContent: "It was written from the window alone." }),
        element("p", { className: "note", textContent: rest > 0.0005 ? `Further passages: ${percent(rest)}` : "" }),
        clear,
      );
      this.read.hidden = false;
      const found = await Promise.all(
        listed.map((passage) => memcore.source.text(this.session, memcore.strip.piece(passage.start), 1)),
      );
      found.forEach(([text], place) => (texts[place].textContent = (text ?? "").trim()));
    }
  }

  memcore.exchanges = {
    chosen: null,
    begin(session, question) {
      const exchange = new Exchange(session, question);
      document.getElementById("exchanges").prepend(exchange.element);
      return exchange;
    },
    unchoose() {
      this.chosen?.unchoose();
      this.chosen = null;
    },
    clear() {
      this.chosen = null;
      document.getElementById("exchanges").replaceChildren();
    },
  };
})();
