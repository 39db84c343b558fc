"use strict";
// The interactive figure of chapter 3: which error reaches which step in BPTT(h; h′), and the bias that follows, for one
// linear unit h_t = λ h_{t−1} + u x_t that has an error at every step. An error that has gone back d steps is worth λ^d of
// what it was. Steps are counted from 1, as in equation 3.1.
(() => {
  // Where the figure begins, and where the button Reset leads. The still picture in the chapter is drawn so.
  const DEFAULTS = { length: 24, depth: 6, stride: 6, decay: 0.8, errors: "alike", followed: 14 };

  /** Equation 3.1: the first step that the error of step t reaches. */
  const firstReached = (t, { depth, stride }) => Math.max(1, Math.ceil(t / stride) * stride - depth + 1);

  /** [how many of the errors arrive, how many are stopped] at each distance 0 … length − 1. */
  function journeys(settings) {
    const counts = Array.from({ length: settings.length }, () => [0, 0]);
    for (let t = 1; t <= settings.length; t += 1) {
      const far = t - firstReached(t, settings);
      for (let d = 0; d < t; d += 1) {
        counts[d][d <= far ? 0 : 1] += 1;
      }
    }
    return counts;
  }

  /**
   * The relative error of the truncated gradient for u. With errors and inputs that are alike, all of them one, what is
   * stopped adds up: the share of the gradient that is missing. If they are unrelated, independent with mean zero and the
   * same variance, lengths add like the steps of a random walk: the root mean square of what is missing, over that of
   * the gradient.
   */
  function bias(settings) {
    const power = settings.errors === "alike" ? 1 : 2;
    let [missing, whole] = [0, 0];
    journeys(settings).forEach(([arrive, stopped], d) => {
      const worth = settings.decay ** (power * d);
      missing += stopped * worth;
      whole += (arrive + stopped) * worth;
    });
    return (missing / whole) ** (1 / power);
  }

  /** What the passes cost if each is made for itself, how far errors get, and how many get the whole way. */
  function counted(settings) {
    const { length, depth, stride } = settings;
    const reached = Array.from({ length }, (_, i) => i + 2 - firstReached(i + 1, settings));
    const passes = Math.ceil(length / stride);
    let walked = 0;
    for (let end = stride; end < length + stride; end += stride) {
      walked += Math.min(end, length) - Math.max(1, end - depth + 1) + 1;
    }
    return {
      passes,
      walked,
      mean: reached.reduce((sum, steps) => sum + steps, 0) / length,
      whole: reached.filter((steps) => steps >= depth).length,
    };
  }

  /** Settings that belong together, after `changed` was changed: a stride is at most the depth, a depth the length. */
  function consistent(settings, changed = "") {
    const { clamp } = window.unrolled;
    const depth = clamp(
      changed === "stride" ? Math.max(settings.depth, settings.stride) : settings.depth,
      1,
      settings.length,
    );
    return {
      ...settings,
      depth,
      stride: clamp(settings.stride, 1, depth),
      followed: clamp(settings.followed, 1, settings.length),
    };
  }

  // In words

  const plural = (count, what) => `${count} ${what}${count === 1 ? "" : what.endsWith("s") ? "es" : "s"}`;

  function style({ length, depth, stride }) {
    if (depth === length && stride === length) {
      return "full backpropagation";
    }
    if (depth === stride && depth > 1) {
      return `chunks of ${depth}`;
    }
    return stride === 1 ? "true truncation" : "between chunks and true truncation";
  }

  function inWords(settings) {
    const { number, percent } = window.unrolled;
    const { length, depth, stride, decay, errors, followed } = settings;
    const { passes, walked, mean, whole } = counted(settings);
    const missing = bias(settings);
    const cost =
      walked === length
        ? "as many as a full pass"
        : `${number(Number((walked / length).toFixed(1)))} times as many as a full pass`;
    const loss =
      missing === 0
        ? "nothing of the gradient is missing"
        : errors === "alike"
          ? `${percent(missing)} of the gradient is missing`
          : `the gradient is wrong by ${percent(missing)} of its length (root mean square)`;
    const first = firstReached(followed, settings);
    const stopped = first - 1;
    const worth = (from, to) =>
      Array.from({ length: to - from }, (_, i) => decay ** (from + i)).reduce((a, b) => a + b, 0);
    const share = worth(followed - stopped, followed) / worth(0, followed);
    const journey =
      first === followed
        ? `reaches no step but its own`
        : `goes back to step ${first}, through ${plural(followed - first + 1, "step")}`;
    const rest = stopped === 0 ? "and nothing of it is stopped" : `which leaves out ${percent(share)} of its worth`;
    return (
      `BPTT(${depth}; ${stride}) over ${plural(length, "step")}: ${style(settings)}. ` +
      `${plural(passes, "backward pass")} ${passes === 1 ? "walks" : "made one by one walk"} back ${plural(walked, "step")}, ${cost}.\n` +
      `An error passes ${number(Number(mean.toFixed(1)))} steps on average, ` +
      `and ${whole} of ${length} ${whole === 1 ? "passes" : "pass"} ${depth === 1 ? "one" : `all ${depth}`}.\n` +
      `If an error keeps ${percent(decay)} of its size in a step, ${loss}.\n` +
      `The error of step ${followed} ${journey}, ${rest}.`
    );
  }

  // On the page

  function build() {
    const { html, svg, clamp, range, number, percent, slider, choice, button, linear, logarithmic } = window.unrolled;
    const { line, powers, axes, picture } = window.unrolled;
    let state = { ...DEFAULTS };
    const change = (values, changed) => {
      state = consistent({ ...state, ...values }, changed);
      redraw();
    };

    const steps = (value) => plural(value, "step");
    const sliders = {
      length: slider("Length <i>T</i>", range(2, 60), steps, (length) => change({ length })),
      depth: slider("Depth <i>h</i>", [1], steps, (depth) => change({ depth })),
      stride: slider("A pass every <i>h′</i>", [1], steps, (stride) => change({ stride }, "stride")),
      decay: slider(
        "Kept in a step, <i>λ</i>",
        range(0, 1, 0.01),
        (value) => number(value),
        (decay) => change({ decay }),
      ),
      followed: slider("Follow the error of step", [1], String, (followed) => change({ followed })),
    };
    const errors = choice(
      "Errors and inputs",
      [
        ["alike", "alike: they add up"],
        ["unrelated", "unrelated: a random walk"],
      ],
      (value) => change({ errors: value }),
    );
    const presets = html(
      "div",
      { class: "buttons" },
      button("Chunks", () => change({ stride: state.depth })),
      button("Between", () => change({ stride: Math.max(1, Math.round(state.depth / 2)) })),
      button("True", () => change({ stride: 1 })),
      button("Full", () => change({ depth: state.length, stride: state.length })),
    );
    const reset = button("Reset", () => change({ ...DEFAULTS }));
    const grid = picture();
    const curves = picture();
    const sentence = html("p", { class: "sentence", "aria-live": "polite", "aria-atomic": "true" });
    const key = html("p", { class: "key" });
    key.innerHTML =
      '<span class="square arrives"><em>arrives</em></span><span class="square half stopped"><em>is stopped</em></span>' +
      '<span class="true">true</span><span class="between">between, <i>h′ = h</i>/2</span>' +
      '<span class="chunks">chunks</span><span class="reader">your choice</span>';
    const node = html(
      "div",
      { class: "interactive", role: "group", "aria-label": "Interactive figure: styles of truncation" },
      html("div", { class: "bar" }, presets, reset),
      key,
      html("div", { class: "pictures" }, grid.node, curves.node),
      sentence,
      html("div", { class: "controls" }, ...Object.values(sliders).map((one) => one.node), errors.node),
    );

    let row = null; // the step whose row is at a height in pixels
    grid.node.addEventListener("click", (event) => {
      const t = row?.(event.clientY - grid.node.getBoundingClientRect().top);
      if (t >= 1 && t <= state.length) {
        change({ followed: t });
        sliders.followed.input.focus({ preventScroll: true, focusVisible: false });
      }
    });

    function drawGrid(width, height) {
      const { length, stride, decay, followed } = state;
      const side = Math.min(width - 56, height - 64);
      const box = { left: 40, top: 24, right: 40 + side, bottom: 24 + side };
      const cell = side / length;
      const x = linear(0.5, length + 0.5, box.left, box.right);
      const y = linear(0.5, length + 0.5, box.top, box.bottom);
      row = (pixel) => Math.floor((pixel - box.top) / cell) + 1;
      const every = [1, 2, 5, 10].find((step) => length / step <= 8);
      const ticks = [1, ...range(every, length, every)].filter(
        (t, i, all) => all.indexOf(t) === i && (t === 1 || t >= every),
      );
      const named = ticks.filter((t) => t === 1 || t - 1 >= every / 2).map((t) => [t, String(t)]);
      const { node: frame, inside } = axes(box, {
        x,
        y,
        xTicks: named,
        yTicks: named,
        xName: "reaches step",
        yName: "error of step",
        title: "which error reaches which step",
        grid: false,
      });
      // One path for each distance and fate: full squares arrive, small ones are stopped; the fainter, the less worth.
      const paths = new Map();
      const gap = cell > 5 ? 1 : 0.3;
      for (let t = 1; t <= length; t += 1) {
        const first = firstReached(t, state);
        for (let s = 1; s <= t; s += 1) {
          const kind = s >= first ? "arrives" : "stopped";
          const size = kind === "arrives" ? cell - gap : Math.max(1, 0.5 * cell);
          const corner = [x(s) - size / 2, y(t) - size / 2];
          const name = `${kind} ${t - s}`;
          paths.set(
            name,
            `${paths.get(name) ?? ""}M${corner[0].toFixed(2)} ${corner[1].toFixed(2)}h${size}v${size}h${-size}z`,
          );
        }
      }
      const triangle = range(1, length).map((t) => `V${y(t) + cell / 2}H${x(t) + cell / 2}`);
      inside.append(
        svg("path", {
          class: "ground",
          d: `M${box.left} ${box.top}H${box.left + cell}${triangle.join("")}V${box.bottom}H${box.left}z`,
        }),
      );
      for (const [name, d] of paths) {
        const [kind, far] = name.split(" ");
        const worth = decay ** Number(far);
        inside.append(
          svg("path", { class: kind, d, "fill-opacity": kind === "arrives" ? 0.16 + 0.84 * worth : worth }),
        );
      }
      const marks = svg("g", {});
      const half = clamp(cell / 3, 2, 4);
      for (let end = stride; end < length + stride; end += stride) {
        const at = Math.min(end, length);
        const tip = [box.left + at * cell + 3, y(at)];
        marks.append(svg("path", { class: "pass", d: `M${tip[0]} ${tip[1]}l${1.7 * half} ${-half}v${2 * half}z` }));
      }
      const place = { x: box.left, y: y(followed) - cell / 2, width: followed * cell, height: cell };
      const pointed = { x: x(1) + side * 0.97, y: box.top + 12, "text-anchor": "end" };
      marks.append(svg("rect", { class: "followed", ...place }));
      if (side > 220) {
        marks.append(svg("text", pointed, "◂ a pass starts"));
      }
      return [frame, marks, svg("rect", { class: "journeys", x: 0, y: 0, width, height, fill: "transparent" })];
    }

    function drawCurves(width, height) {
      const { length, depth } = state;
      const box = { left: 50, top: 24, right: width - 12, bottom: height - 40 };
      const mine = bias(state);
      const styles = [
        ["chunks", (n) => n],
        ["between", (n) => Math.max(1, Math.round(n / 2))],
        ["true", () => 1],
      ].map(([kind, stride]) => [
        kind,
        range(1, length - 1).map((n) => bias({ ...state, depth: n, stride: stride(n) })),
      ]);
      const seen = [...styles.flatMap(([, values]) => values), mine].filter((value) => value > 0);
      const low = clamp(Math.min(...seen, 0.1), 1e-6, 0.1);
      const x = logarithmic(1, Math.max(length, 2), box.left, box.right);
      const y = logarithmic(10 ** Math.floor(Math.log10(low)), 1, box.bottom, box.top);
      const { node: frame, inside } = axes(box, {
        x,
        y,
        xTicks: [1, 2, 5, 10, 20, 50].filter((n) => n <= length).map((n) => [n, String(n)]),
        yTicks: powers(y),
        xName: "depth h, in steps",
        title: state.errors === "alike" ? "share of the gradient missing" : "relative error (rms)",
      });
      for (const [kind, values] of styles) {
        const drawn = values.map((value, i) => [x(i + 1), y(Math.max(value, 1e-300))]);
        inside.append(svg("path", { class: `bias ${kind}`, d: line(drawn) }));
      }
      const [cx, cy] = [x(depth), y(Math.max(mine, 1e-300))];
      const dot = svg("circle", { class: "reader", cx, cy: Math.min(cy, box.bottom), r: 6 });
      const ends = cx > box.right - 50;
      const label = {
        x: cx + (ends ? 4 : 9),
        y: Math.min(cy, box.bottom - 4) - 9,
        "text-anchor": ends ? "end" : "start",
      };
      const text = mine === 0 ? "nothing missing" : percent(mine);
      return [frame, dot, svg("text", { class: "title over", ...label }, text)];
    }

    function redraw() {
      sliders.length.set(state.length);
      sliders.depth.set(state.depth, range(1, state.length));
      sliders.stride.set(state.stride, range(1, state.length));
      sliders.decay.set(state.decay);
      sliders.followed.set(state.followed, range(1, state.length));
      errors.set(state.errors);
      const words = inWords(state);
      const width = grid.node.clientWidth;
      const height = clamp(width + 8, 250, 350);
      grid.draw(height, "Errors down, the steps that they reach across, told below", drawGrid);
      curves.draw(height, "Bias against depth for chunks, for true truncation and between", drawCurves);
      if (sentence.textContent !== words) {
        sentence.textContent = words;
      }
    }

    return { node, redraw };
  }

  window.unrolled = window.unrolled ?? {};
  window.unrolled.truncation = { DEFAULTS, firstReached, bias, counted, consistent, inWords };
  window.unrolled.figures = { ...window.unrolled.figures, "interactive-truncation": build };
})();
