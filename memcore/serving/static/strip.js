// The text as a heat map: one cell for each passage, in reading order, line by line.
"use strict";

(() => {
  const canvas = document.getElementById("strip");
  const frame = document.getElementById("frame");
  const cursor = document.getElementById("cursor");
  const SIZES = [16, 14, 12, 10, 8, 6, 5, 4, 3, 2];
  const TALLEST = 168;

  let cells = []; // {start, end, kind: "stored" or "window", retrievals, held}
  let layers = 1;
  let shares = null; // by start, of the token that is chosen
  let chosen = 0;
  let listener = () => {};
  let size = 16;
  let columns = 1;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function lay() {
    const width = Math.max(1, canvas.clientWidth);
    size = SIZES.find((each) => Math.ceil(cells.length / Math.floor(width / each)) * each <= TALLEST) ?? 2;
    columns = Math.max(1, Math.floor(width / size));
    const height = Math.max(1, Math.ceil(cells.length / columns)) * size;
    const scale = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }

  function draw() {
    lay();
    const pen = canvas.getContext("2d");
    const [line, uses, share, ink, muted, paper] = ["--line", "--uses", "--share", "--ink", "--muted", "--paper"].map(colour);
    const most = Math.log1p(cells.reduce((highest, cell) => Math.max(highest, cell.retrievals), 1));
    const largest = shares ? Math.max(1e-9, ...shares.values()) : 1;
    const gap = size > 5 ? 1 : 0;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    cells.forEach((cell, index) => {
      const x = (index % columns) * size;
      const y = Math.floor(index / columns) * size;
      const side = size - gap;
      const part = shares ? (shares.get(cell.start) ?? 0) / largest : 0;
      const fill = (style, alpha) => {
        pen.globalAlpha = alpha;
        pen.fillStyle = style;
        pen.fillRect(x, y, side, side);
      };
      if (cell.kind === "window") {
        pen.globalAlpha = shares ? 0.5 : 1;
        pen.strokeStyle = muted;
        pen.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
      } else if (cell.held === 0) {
        pen.globalAlpha = shares ? 0.5 : 1;
        pen.strokeStyle = muted;
        pen.beginPath();
        pen.moveTo(x, y + side);
        pen.lineTo(x + side, y);
        pen.stroke();
      } else {
        fill(line, shares ? 0.6 : 1);
        if (shares === null) fill(uses, cell.retrievals ? 0.2 + 0.8 * (Math.log1p(cell.retrievals) / most) : 0);
        else if (part > 0) fill(share, 0.15 + 0.85 * part);
        if (cell.held < layers) {
          pen.globalAlpha = 1;
          pen.fillStyle = paper;
          pen.fillRect(x + side / 2, y + side / 2, side / 2, side / 2);
        }
      }
      if (index === chosen) {
        pen.globalAlpha = 1;
        pen.strokeStyle = ink;
        pen.lineWidth = 2;
        pen.strokeRect(x + 1, y + 1, Math.max(1, side - 2), Math.max(1, side - 2));
        pen.lineWidth = 1;
      }
    });
    pen.globalAlpha = 1;
    canvas.setAttribute("aria-label", described());
    // What is drawn, for those who look at the page by program.
    canvas.dataset.lit = shares ? cells.filter((cell) => shares.has(cell.start)).map((cell) => cell.start).join(" ") : "";
  }

  function place(start) {
    return cells.findIndex((cell) => cell.start === start);
  }

  function described() {
    const stored = cells.filter((cell) => cell.kind === "stored");
    if (shares) {
      const lit = [...shares].slice(0, 5).map(([start, share]) => `${memcore.count(start)}: ${memcore.percent(share)}`);
      return `Heat map of ${memcore.counted(stored.length, "passage", "passages")}. Lit: ${lit.join(", ") || "none"}`;
    }
    const used = stored.filter((cell) => cell.retrievals).length;
    const gone = stored.filter((cell) => cell.held === 0).length;
    return (
      `Heat map of ${memcore.counted(stored.length, "passage", "passages")}: ` +
      `${memcore.count(used)} retrieved at least once, ${memcore.count(gone)} evicted`
    );
  }

  // Scrolls a long text to a cell.
  function uncover(index) {
    const top = Math.floor(index / columns) * size;
    if (top < frame.scrollTop || top + size > frame.scrollTop + frame.clientHeight) {
      frame.scrollTop = top - frame.clientHeight / 2;
    }
  }

  function choose(index) {
    chosen = Math.max(0, Math.min(cells.length - 1, index));
    cursor.value = chosen;
    const cell = cells[chosen];
    if (cell) cursor.setAttribute("aria-valuetext", `position ${memcore.count(cell.start)}`);
    draw();
    uncover(chosen);
    if (cell) listener(cell, chosen);
  }

  canvas.addEventListener("click", (event) => {
    const column = Math.min(columns - 1, Math.floor(event.offsetX / size));
    choose(Math.floor(event.offsetY / size) * columns + column);
  });
  cursor.addEventListener("input", () => choose(Number(cursor.value)));
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  memcore.strip = {
    // Shows the passages of a session; `told` hears which cell is chosen.
    show(session, told) {
      const { sinks, chunk_size: length } = session.config;
      layers = session.layers.length;
      cells = session.retrievals.map((retrievals, index) => ({
        kind: "stored",
        start: sinks + index * length,
        end: sinks + (index + 1) * length,
        retrievals,
        held: session.held[index],
      }));
      for (let start = sinks + cells.length * length; start < session.tokens; start += length) {
        cells.push({ kind: "window", start, end: Math.min(start + length, session.tokens), retrievals: 0, held: 0 });
      }
      shares = null;
      listener = told;
      cursor.max = Math.max(0, cells.length - 1);
      choose(0);
    },
    // Lights up passages by their share, a Map from start to share; null for counters of use instead.
    light(map) {
      shares = map;
      draw();
      const [most] = map?.keys() ?? []; // the largest share comes first
      if (most !== undefined) uncover(place(most));
    },
    goTo(start) {
      choose(place(start));
    },
    piece: (start) => place(start) + 1,
  };
})();
