"use strict";
// The interactive figure of chapter 1: plain gradient descent and the heavy ball, side by side, on a ravine and on the
// polynomial of equation 1.1. Step sizes are counted in units of 1/L, where L is the largest curvature: κ in the ravine
// (w₁² + κ w₂²) / 2, and f″(9/4) at the minimum of the polynomial.
(() => {
  const FAR = 1e6; // a walker this far away has left for good, and its path ends
  const MINIMUM = 9 / 4;
  const CURVATURE = 12 * MINIMUM ** 2 - 18 * MINIMUM; // f″ at the minimum, 20.25

  const f = (x) => x ** 4 - 3 * x ** 3 + 2;
  const slope = (x) => 4 * x ** 3 - 9 * x ** 2;

  // Where the figure begins, and where the button Reset leads. The still picture in the chapter shows the ravine so.
  const DEFAULTS = {
    ravine: { kappa: 60, units: 1.8, beta: 0.7, steps: 24, start: [-10, 1.6] },
    polynomial: { units: 0.2, beta: 0.9, steps: 60, start: [-1] },
  };

  const largestCurvature = (landscape, settings) => (landscape === "ravine" ? settings.kappa : CURVATURE);
  const distance = (landscape, w) => (landscape === "ravine" ? Math.hypot(...w) : Math.abs(w[0] - MINIMUM));

  /** The heavy ball, v ← βv + g and w ← w − η′v; with β = 0, plain descent. All points visited, until it is far away. */
  function walk(landscape, settings, beta = settings.beta) {
    const step = settings.units / largestCurvature(landscape, settings);
    const gradient = landscape === "ravine" ? ([a, b]) => [a, settings.kappa * b] : ([x]) => [slope(x)];
    let [w, v] = [settings.start, settings.start.map(() => 0)];
    const points = [w];
    while (points.length <= settings.steps && distance(landscape, w) <= FAR) {
      const g = gradient(w);
      v = v.map((speed, i) => beta * speed + g[i]);
      w = w.map((place, i) => place - step * v[i]);
      points.push(w);
    }
    return points;
  }

  /** The factor by which a step multiplies the distance in the long run: the larger root of the book's z² − (1+β−η′λ)z + β. */
  function rate(landscape, settings, beta = settings.beta) {
    const ends = landscape === "ravine" ? [1 / settings.kappa, 1] : [1];
    return Math.max(
      ...ends.map((share) => {
        const sum = 1 + beta - settings.units * share;
        const under = sum ** 2 - 4 * beta;
        return under < 0 ? Math.sqrt(beta) : (Math.abs(sum) + Math.sqrt(under)) / 2;
      }),
    );
  }

  /** The last quarter of a path on the polynomial, at least four places. */
  const lately = (points) => points.slice(-Math.max(4, Math.ceil(points.length / 4))).map(([x]) => x);

  /** What became of a walker on the polynomial: "gone", "arrived", "stuck", "settling", "swinging", "widening" or "walking". */
  function fate(points) {
    if (!(distance("polynomial", points.at(-1)) <= FAR)) {
      return "gone";
    }
    const late = lately(points);
    if (late.every((x) => Math.abs(x - MINIMUM) < 0.01)) {
      return "arrived";
    }
    if (late.every((x) => x > -0.3 && x < 0.02)) {
      return "stuck";
    }
    const crossings = late.filter((x, i) => i > 0 && (x - MINIMUM) * (late[i - 1] - MINIMUM) < 0).length;
    if (crossings < 2) {
      return "walking";
    }
    const widest = (part) => Math.max(...part.map((x) => Math.abs(x - MINIMUM)));
    const half = Math.floor(late.length / 2);
    const growth = widest(late.slice(half)) / widest(late.slice(0, half));
    return growth < 0.8 ? "settling" : growth < 1.25 ? "swinging" : "widening";
  }

  const best = (kappa) => {
    const root = Math.sqrt(kappa);
    return {
      plain: { units: (2 * kappa) / (kappa + 1) }, // equation 1.6
      heavy: { units: (4 * kappa) / (root + 1) ** 2, beta: ((root - 1) / (root + 1)) ** 2 }, // equation 1.7
    };
  };

  // In words

  const symbol = (landscape) => (landscape === "ravine" ? "L" : "f″");

  function stepInWords(landscape, settings) {
    const size = settings.units / largestCurvature(landscape, settings);
    const { number } = window.unrolled;
    return `${number(size)} = ${number(settings.units)} / ${symbol(landscape)}`;
  }

  function ravineInWords(settings, beta) {
    const { number, percent } = window.unrolled;
    const points = walk("ravine", settings, beta);
    const factor = rate("ravine", settings, beta);
    const end = distance("ravine", points.at(-1));
    if (!(end <= FAR)) {
      return `is thrown out of the valley within ${points.length - 1} steps`;
    }
    const where = `ends ${number(end, 2)} from the lowest point`;
    if (Math.abs(factor - 1) < 1e-9) {
      return `${where}, and will swing for ever at the same distance`;
    }
    return factor > 1
      ? `${where} and is being thrown out: in the long run each step multiplies the distance by ${number(factor)}`
      : `${where}; in the long run each step leaves ${percent(factor)} of the distance`;
  }

  function polynomialInWords(settings, beta) {
    const { number } = window.unrolled;
    const points = walk("polynomial", settings, beta);
    const x = points.at(-1)[0];
    const late = lately(points);
    const away = `${number(Math.abs(x - MINIMUM), 2)} from the minimum`;
    return {
      gone: `is thrown off the curve within ${points.length - 1} steps`,
      arrived: `arrives at the minimum (it is ${away})`,
      stuck: `is stuck at the flat place, at x = ${number(x, 2)}`,
      swinging: `swings about the minimum between ${number(Math.min(...late))} and ${number(Math.max(...late))}`,
      widening: `swings about the minimum, wider and wider, and is ${away}`,
      settling: `swings towards rest at the minimum, and is still ${away}`,
      walking: `is on its way at x = ${number(x)}, ${away}`,
    }[fate(points)];
  }

  function inWords(landscape, settings) {
    const { number } = window.unrolled;
    const told = landscape === "ravine" ? ravineInWords : polynomialInWords;
    const count = `${settings.steps} step${settings.steps === 1 ? "" : "s"} of size ${stepInWords(landscape, settings)}`;
    const { kappa, start } = settings;
    let begin = `On the polynomial from x = ${number(start[0])}, ${count}`;
    if (landscape === "ravine") {
      const valley = kappa === 1 ? "a round bowl" : `a ravine ${number(kappa)} times steeper across than along`;
      const away = `${number(distance(landscape, start))} from the lowest point`;
      begin = `In ${valley}, ${count} from (${start.map((place) => number(place)).join(", ")}), ${away}`;
    }
    const plain = `${begin}.\nPlain descent ${told(settings, 0)}.\n`;
    return settings.beta === 0
      ? `${plain}With momentum 0 the heavy ball is plain descent.`
      : `${plain}With momentum ${number(settings.beta)} the heavy ball ${told(settings, settings.beta)}.`;
  }

  // On the page

  function tables() {
    const { range } = window.unrolled;
    const decade = [...range(1, 3, 0.1), ...range(3.2, 4.8, 0.2), ...range(5, 9.5, 0.5)];
    const scaled = (factor) => decade.map((value) => Number((value * factor).toPrecision(3)));
    return {
      units: [...scaled(0.01), ...scaled(0.1), ...decade.filter((value) => value <= 5)],
      beta: range(0, 0.99, 0.01),
      steps: [...range(1, 30), ...range(35, 100, 5), 120, 150, 200, 300, 400, 500],
      kappa: [1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 700, 1000],
      along: range(-11, 8, 0.5),
      across: range(-2.2, 2.2, 0.1),
      x: range(-1.5, 3.4, 0.05),
    };
  }

  function build() {
    const { html, svg, clamp, number, slider, choice, button, linear, logarithmic, line, dots, powers } =
      window.unrolled;
    const { axes, picture, range } = window.unrolled;
    const table = tables();
    const state = { landscape: "ravine", ...structuredClone(DEFAULTS) };
    const now = () => state[state.landscape];
    const change = (values) => {
      Object.assign(now(), values);
      redraw();
    };

    const where = choice(
      "Landscape",
      [
        ["ravine", "a ravine"],
        ["polynomial", "x⁴ − 3x³ + 2"],
      ],
      (value) => {
        state.landscape = value;
        redraw();
      },
    );
    const steps = (value) => `${value} step${value === 1 ? "" : "s"}`;
    const sliders = {
      units: slider(
        "Step size <i>η′</i>",
        table.units,
        () => stepInWords(state.landscape, now()),
        (units) => change({ units }),
      ),
      beta: slider(
        "Momentum <i>β</i>",
        table.beta,
        (value) => number(value),
        (beta) => change({ beta }),
      ),
      steps: slider("Number of steps", table.steps, steps, (value) => change({ steps: value })),
      kappa: slider(
        "Condition number <i>κ</i>",
        table.kappa,
        (value) => number(value, 4),
        (kappa) => change({ kappa }),
      ),
      first: slider(
        "Start",
        table.along,
        (value) => number(value),
        (value) => change({ start: [value, ...now().start.slice(1)] }),
      ),
      second: slider(
        "Start, <i>w</i>₂",
        table.across,
        (value) => number(value),
        (value) => change({ start: [now().start[0], value] }),
      ),
    };
    const tried = {
      ravine: [
        ["Best for plain descent (1.6)", () => best(now().kappa).plain],
        ["Best for the heavy ball (1.7)", () => best(now().kappa).heavy],
      ],
      polynomial: [
        ["Stuck, or carried across", () => structuredClone(DEFAULTS.polynomial)],
        ["One long jump", () => ({ units: 1.8, beta: 0, steps: 60, start: [-1] })],
        ["A swing for ever", () => ({ units: 2.3, beta: 0, steps: 40, start: [2.4] })],
      ],
    };
    const trials = html("div", { class: "buttons" });
    const buttons = Object.fromEntries(
      Object.entries(tried).map(([name, all]) => [
        name,
        all.map(([text, values]) => button(text, () => change(values()))),
      ]),
    );
    const reset = button("Reset", () => change(structuredClone(DEFAULTS[state.landscape])));
    const landscape = picture();
    const errors = picture();
    const sentence = html("p", { class: "sentence", "aria-live": "polite", "aria-atomic": "true" });
    const key = html("p", { class: "key" });
    key.innerHTML =
      '<span class="plain">plain descent</span><span class="heavy">heavy ball</span><span class="predicted">predicted rate</span>';
    const node = html(
      "div",
      { class: "interactive", role: "group", "aria-label": "Interactive figure: gradient descent and momentum" },
      html("div", { class: "bar" }, where.node, trials, reset),
      key,
      html("div", { class: "pictures" }, landscape.node, errors.node),
      sentence,
      html("div", { class: "controls" }, ...Object.values(sliders).map((one) => one.node)),
    );

    // The start can also be taken by hand.
    let view = null;
    let held = false;
    const take = (event) => {
      const { left, top } = landscape.node.getBoundingClientRect();
      const nearest = (values, wanted) =>
        values.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
      const [x, y] = [view.x.back(event.clientX - left), view.y.back(event.clientY - top)];
      const inRavine = state.landscape === "ravine";
      change({ start: inRavine ? [nearest(table.along, x), nearest(table.across, y)] : [nearest(table.x, x)] });
    };
    landscape.node.addEventListener("pointerdown", (event) => {
      if (event.target.classList.contains("handle")) {
        held = true;
        landscape.node.setPointerCapture(event.pointerId);
        sliders.first.input.focus({ preventScroll: true, focusVisible: false });
        event.preventDefault();
      }
    });
    landscape.node.addEventListener("pointermove", (event) => held && take(event));
    for (const end of ["pointerup", "pointercancel"]) {
      landscape.node.addEventListener(end, () => (held = false));
    }

    function drawLandscape(width, height, walks) {
      const box = { left: 44, top: 10, right: width - 6, height, bottom: height - 40 };
      const inRavine = state.landscape === "ravine";
      const [xs, ys] = inRavine
        ? [
            [-12, 9],
            [-2.5, 2.5],
          ]
        : [
            [-1.6, 3.5],
            [-10.5, 18],
          ];
      const x = linear(...xs, box.left, box.right);
      const y = linear(...ys, box.bottom, box.top);
      view = { x, y };
      const ticks = (values) => values.map((value) => [value, number(value)]);
      const { node: frame, inside } = axes(box, {
        x,
        y,
        xTicks: ticks(inRavine ? [-10, -5, 0, 5] : [-1, 0, 1, 2, 3]),
        yTicks: ticks(inRavine ? [-2, -1, 0, 1, 2] : [-5, 0, 5, 10, 15]),
        xName: inRavine ? "w₁, the gentle direction" : "x",
        yName: inRavine ? "w₂, the steep direction" : "f(x)",
        grid: !inRavine,
      });
      if (inRavine) {
        for (let i = 0; i < 10; i += 1) {
          const level = 0.3 * (150 / 0.3) ** (i / 9);
          const [rx, ry] = [Math.sqrt(2 * level), Math.sqrt((2 * level) / now().kappa)];
          inside.append(svg("ellipse", { class: "contour", cx: x(0), cy: y(0), rx: x(rx) - x(0), ry: y(0) - y(ry) }));
        }
      } else {
        const curve = Array.from({ length: 120 }, (_, i) => xs[0] + (i / 119) * (xs[1] - xs[0]));
        inside.append(svg("path", { class: "curve", d: line(curve.map((place) => [x(place), y(f(place))])) }));
        inside.append(
          svg("text", { x: x(MINIMUM), y: y(f(MINIMUM)) + 18, "text-anchor": "middle" }, "minimum, 9/4"),
          svg("text", { x: x(0), y: y(f(0)) - 10, "text-anchor": "middle" }, "flat place"),
        );
      }
      const pixels = (w) => (inRavine ? [x(w[0]), y(w[1])] : [x(w[0]), y(f(w[0]))]);
      for (const [kind, points] of walks) {
        const drawn = points.map(pixels);
        const fine = points.length > 120 ? "fine" : ""; // where many lines would run into one
        inside.append(
          svg("path", { class: `walk ${kind} ${fine}`, d: line(drawn) }),
          svg("path", { class: `dots ${kind} ${fine}`, d: dots(drawn) }),
        );
      }
      const [tx, ty] = inRavine ? [x(0), y(0)] : [x(MINIMUM), y(f(MINIMUM))];
      inside.append(svg("path", { class: "target", d: `M${tx - 6} ${ty}h12M${tx} ${ty - 6}v12` }));
      const [cx, cy] = pixels(now().start);
      const handle = [
        svg("circle", { class: "start", cx, cy, r: 6 }),
        svg("circle", { class: "handle", cx, cy, r: 18 }),
      ];
      return [frame, ...handle];
    }

    function drawErrors(width, height, walks) {
      const box = { left: 50, top: 24, right: width - 8, bottom: height - 40 };
      const sizes = walks.map(([kind, points, factor]) => [
        kind,
        points.map((w) => distance(state.landscape, w)),
        factor,
      ]);
      const all = sizes.flatMap(([, values]) => values).filter((value) => value > 0 && value <= FAR);
      const low = clamp(Math.min(...all), 1e-14, 1);
      const high = clamp(Math.max(...all), 1, FAR);
      const x = linear(0, now().steps, box.left, box.right);
      const y = logarithmic(
        10 ** Math.floor(Math.log10(low)),
        10 ** Math.ceil(Math.log10(high * 1.01)),
        box.bottom,
        box.top,
      );
      const every = [1, 2, 5, 10, 20, 50, 100].find((step) => now().steps / step <= 5) ?? 100;
      const { node: frame, inside } = axes(box, {
        x,
        y,
        xTicks: range(0, now().steps, every).map((k) => [k, String(k)]),
        yTicks: powers(y),
        xName: "steps",
        title: "distance from the minimum",
      });
      for (const [kind, values, factor] of sizes) {
        const settled = state.landscape === "ravine" || values.at(-1) < 0.1;
        if (settled && factor > 0) {
          // The predicted line touches the latter part of the path from above, whatever the swings in it.
          const from = Math.floor((2 * (values.length - 1)) / 3);
          const anchor = Math.max(...values.slice(from).map((value, i) => value / factor ** (from + i)));
          const at = (k) => [x(k), y(clamp(anchor * factor ** k, 1e-300, 1e300))];
          inside.append(svg("path", { class: `predicted ${kind}`, d: line([at(0), at(now().steps)]) }));
        }
        const drawn = values.map((value, k) => [x(k), y(clamp(value, 1e-300, 1e300))]);
        inside.append(svg("path", { class: `error ${kind}`, d: line(drawn) }));
        if (drawn.length <= 60) {
          inside.append(svg("path", { class: `dots ${kind}`, d: dots(drawn) }));
        }
      }
      return [frame];
    }

    function redraw() {
      const settings = now();
      const inRavine = state.landscape === "ravine";
      where.set(state.landscape);
      trials.replaceChildren(...buttons[state.landscape]);
      const limits = [{ at: 2, name: `2/${symbol(state.landscape)}`, kind: "plain" }];
      if (settings.beta >= 0.05) {
        limits.push({ at: 2 * (1 + settings.beta), name: `2(1+β)/${symbol(state.landscape)}`, kind: "heavy" });
      }
      sliders.units.set(settings.units, table.units, limits);
      sliders.beta.set(settings.beta);
      sliders.steps.set(settings.steps);
      sliders.kappa.node.hidden = !inRavine;
      sliders.second.node.hidden = !inRavine;
      if (inRavine) {
        sliders.kappa.set(settings.kappa);
        sliders.second.set(settings.start[1]);
      }
      sliders.first.node.querySelector("label").innerHTML = inRavine ? "Start, <i>w</i>₁" : "Start, <i>x</i>";
      sliders.first.set(settings.start[0], inRavine ? table.along : table.x);

      const walks = [
        ["heavy", walk(state.landscape, settings), rate(state.landscape, settings)],
        ["plain", walk(state.landscape, settings, 0), rate(state.landscape, settings, 0)],
      ];
      const words = inWords(state.landscape, settings);
      const height = landscape.node.clientWidth < 340 ? 230 : 270;
      landscape.draw(height, "The landscape with the paths of both walkers, told below", (w, h) =>
        drawLandscape(w, h, walks),
      );
      errors.draw(height, "The distance from the minimum after each step, on a logarithmic axis", (w, h) =>
        drawErrors(w, h, walks),
      );
      if (sentence.textContent !== words) {
        sentence.textContent = words;
      }
    }

    return { node, redraw };
  }

  window.unrolled = window.unrolled ?? {};
  window.unrolled.descent = { DEFAULTS, walk, rate, fate, best, inWords };
  window.unrolled.figures = { ...window.unrolled.figures, "interactive-descent": build };
})();
