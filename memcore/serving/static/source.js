// Where the page's data comes from: the server, or, in a report, the page itself.
"use strict";

const memcore = {};

(() => {
  async function told(response) {
    if (response.ok) return response.json();
    let message = `${response.status} ${response.statusText}`;
    try {
      message = (await response.json()).error.message;
    } catch {
      // not JSON: the status says it
    }
    throw new Error(message);
  }

  // Yields the objects of a stream of server-sent events.
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  }

  const server = {
    memory: async () => told(await fetch("api/v1/memory")),
    session: async (name) => told(await fetch(`api/v1/session?name=${encodeURIComponent(name)}`)),
    text: async (name, first, count) => {
      const query = new URLSearchParams({ name, first, count });
      return (await told(await fetch(`api/v1/text?${query}`))).pieces;
    },
    exchanges: () => [],
    async *ask(request, signal) {
      const response = await fetch("api/v1/ask", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(request),
        signal,
      });
      if (!response.ok) await told(response);
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    },
  };

  function report(data) {
    const of = (name) => data.sessions.find((each) => each.session.name === name);
    return {
      memory: async () => data.memory,
      session: async (name) => of(name).session,
      text: async (name, first, count) => of(name).pieces.slice(first, first + count),
      exchanges: (name) => of(name).exchanges,
      ask: null,
    };
  }

  const recorded = document.getElementById("recorded");
  memcore.source = recorded ? report(JSON.parse(recorded.textContent)) : server;

  // Makes an element: its text is set as text, never as markup.
  memcore.element = (tag, properties = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };

  const whole = new Intl.NumberFormat("en");
  memcore.count = (number) => whole.format(number);
  memcore.counted = (number, one, many) => `${whole.format(number)} ${number === 1 ? one : many}`;
  memcore.percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
})();
