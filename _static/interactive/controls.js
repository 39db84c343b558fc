"use strict";
// What the interactive figures share: making elements, writing numbers, labelled sliders, axes, and taking the place of
// the picture that a chapter's cell stored. Without this script, on paper and in Colab that picture is what is shown.
// No library, nothing fetched; the scripts of this folder may be loaded in any order.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const THUMB = 16; // pixels: the width that browsers give the thumb of a slider, for the limits marked below it
  let made = 0;

  function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
  const svg = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const range = (first, last, step = 1) =>
    Array.from({ length: Math.floor((last - first) / step + 1e-9) + 1 }, (_, i) =>
      Number((first + i * step).toFixed(10)),
    );

  const raised = (power) => String(power).replace(/./g, (sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻");

  /** A number as the book writes it: few digits, a true minus, powers of ten where they are needed. */
  function number(value, digits = 3) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
      const [mantissa, power] = value.toExponential(Math.max(0, digits - 2)).split("e");
      return `${mantissa.replace("-", "−")} × 10${raised(String(Number(power)))}`;
    }
    return String(Number(value.toPrecision(digits))).replace("-", "−");
  }

  /** A share as a percentage, with more digits where it is nearly nothing or nearly all. */
  function percent(share) {
    const near = Math.min(share, Math.abs(1 - share));
    const text = Number((100 * share).toFixed(near > 0.05 ? 0 : near > 5e-4 ? 1 : 3));
    return `${share > 0 && text === 0 ? "less than 0.001" : text}\u00a0%`;
  }

  /**
   * A labelled slider over a table of values. `show(value)` writes the value beside the label and says it to a screen
   * reader; `pick(value)` is called when the reader moves it. Its `set(value, values, limits)` puts it at the entry nearest
   * to a value, which itself need not be in the table. A limit is a named place below it: {at, name, kind}.
   */
  function slider(label, values, show, pick) {
    const id = `unrolled-${(made += 1)}`;
    const input = html("input", { type: "range", id, min: 0, step: 1 });
    // The slider says its own value: an output that announced it, too, would say everything twice.
    const output = html("output", { for: id, "aria-live": "off" });
    const below = html("div", { class: "limits", "aria-hidden": "true" });
    const name = html("label", { for: id });
    name.innerHTML = label;
    let table = values;
    input.addEventListener("input", () => pick(table[Number(input.value)]));

    function place(value) {
      const after = table.findIndex((entry) => entry >= value);
      if (after <= 0) {
        return after < 0 ? table.length - 1 : 0;
      }
      return after - 1 + (value - table[after - 1]) / (table[after] - table[after - 1]);
    }

    function set(value, newValues = table, limits = []) {
      table = newValues;
      input.max = table.length - 1;
      input.value = Math.round(place(value));
      output.textContent = show(value);
      input.setAttribute("aria-valuetext", show(value));
      below.replaceChildren(
        ...limits.map(({ at, name: text, kind }) => {
          const share = place(at) / (table.length - 1);
          const side = share > 0.8 ? "left" : "right";
          const [edge, gap] = side === "left" ? ["right", 1 - share] : ["left", share];
          const margin = `margin-${edge}: calc(${THUMB / 2}px + ${gap} * (100% - ${THUMB}px))`;
          return html("div", { class: `limit ${kind} ${side}` }, html("span", { style: margin }, text));
        }),
      );
      below.hidden = limits.length === 0;
    }

    return { node: html("div", { class: "control" }, name, output, input, below), input, set };
  }

  function choice(label, options, pick) {
    const id = `unrolled-${(made += 1)}`;
    const select = html("select", { id });
    for (const [value, text] of options) {
      select.append(html("option", { value }, text));
    }
    select.addEventListener("change", () => pick(select.value));
    const node = html("div", { class: "choice" }, html("label", { for: id }, label), select);
    return { node, input: select, set: (value) => (select.value = value) };
  }

  function button(text, press) {
    const node = html("button", { type: "button" });
    node.innerHTML = text;
    node.addEventListener("click", press);
    return node;
  }

  // Scales map what is drawn to pixels, and know their ends.
  const linear = (from, to, start, end) =>
    Object.assign((value) => start + ((value - from) / (to - from)) * (end - start), {
      from,
      to,
      back: (pixel) => from + ((pixel - start) / (end - start)) * (to - from),
    });
  const logarithmic = (from, to, start, end) => {
    const inner = linear(Math.log10(from), Math.log10(to), start, end);
    return Object.assign((value) => inner(Math.log10(value)), { from, to });
  };

  /** The line through the points, each [x, y] in pixels; far ones are brought in, so that no browser loses count. */
  const line = (points) =>
    points
      .map(([x, y], i) => `${i ? "L" : "M"}${clamp(x, -1e4, 1e4).toFixed(2)} ${clamp(y, -1e4, 1e4).toFixed(2)}`)
      .join("");

  /** A round dot at each of the points, as one path. */
  const dots = (points) =>
    points
      .filter(([x, y]) => Math.abs(x) < 1e4 && Math.abs(y) < 1e4)
      .map(([x, y]) => `M${x.toFixed(2)} ${y.toFixed(2)}h0`)
      .join("");

  /** Whole powers of ten within a logarithmic scale, at most `most` of them. */
  function powers(scale, most = 6) {
    const [low, high] = [Math.ceil(Math.log10(scale.from) - 1e-9), Math.floor(Math.log10(scale.to) + 1e-9)];
    const step = Math.max(1, Math.ceil((high - low) / most));
    return range(Math.ceil(low / step), Math.floor(high / step)).map((i) => [
      10 ** (i * step),
      `10${raised(i * step)}`,
    ]);
  }

  /**
   * Axes within `box` {left, top, right, bottom}: grid lines and names at the ticks, each [value, name]; names of the axes.
   * The first child is the clipped group into which curves go.
   */
  function axes(box, { x, y, xTicks, yTicks, xName, yName, title, grid = true }) {
    const clip = `unrolled-${(made += 1)}`;
    const area = { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top };
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    const node = svg("g", {}, svg("clipPath", { id: clip }, svg("rect", area)));
    for (const [value, text] of xTicks) {
      if (grid) {
        node.append(svg("path", { class: "grid", d: `M${x(value)} ${box.top}V${box.bottom}` }));
      }
      node.append(svg("text", { x: x(value), y: box.bottom + 16, "text-anchor": "middle" }, text));
    }
    for (const [value, text] of yTicks) {
      if (grid) {
        node.append(svg("path", { class: "grid", d: `M${box.left} ${y(value)}H${box.right}` }));
      }
      node.append(svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
    }
    node.append(
      inside,
      svg("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }),
      svg("text", { class: "name", x: (box.left + box.right) / 2, y: box.bottom + 33, "text-anchor": "middle" }, xName),
    );
    if (yName) {
      const middle = (box.top + box.bottom) / 2;
      const turned = { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` };
      node.append(svg("text", { class: "name", ...turned }, yName));
    }
    if (title) {
      node.append(svg("text", { class: "title", x: box.left, y: box.top - 9 }, title));
    }
    return { node, inside };
  }

  /** A picture that a screen reader announces as one; its parts are for the eye. */
  function picture() {
    const node = svg("svg", { role: "img" });
    const draw = (height, label, parts) => {
      const width = Math.max(200, node.clientWidth);
      node.setAttribute("viewBox", `0 0 ${width} ${height}`);
      node.setAttribute("height", height);
      node.setAttribute("aria-label", label);
      node.replaceChildren(...parts(width, height));
    };
    return { node, draw };
  }

  /**
   * Put a live figure where the cell with this tag shows its picture. `build()` returns {node, redraw}. The picture stays
   * in the page, for the printer; if anything fails, it stays in view.
   */
  function place(tag, build) {
    for (const output of document.querySelectorAll(`.cell.tag_${tag} .cell_output`)) {
      const still = output.querySelector(":scope > a.image-reference, :scope > img");
      if (still === null) {
        continue;
      }
      let live;
      try {
        live = build();
        output.insertBefore(live.node, still);
        live.redraw();
        output.classList.add("is-live");
      } catch (error) {
        live?.node.remove();
        console.error(error);
        continue;
      }
      let width = live.node.clientWidth;
      new ResizeObserver(() => {
        if (live.node.clientWidth !== width && live.node.clientWidth > 0) {
          width = live.node.clientWidth;
          live.redraw();
        }
      }).observe(live.node);
    }
  }

  window.unrolled = Object.assign(window.unrolled ?? {}, {
    ...{ html, svg, clamp, range, number, percent, slider, choice, button, linear, logarithmic, line, dots, powers },
    ...{ axes, picture },
  });
  document.addEventListener("DOMContentLoaded", () => {
    for (const [tag, build] of Object.entries(window.unrolled.figures ?? {})) {
      place(tag, build);
    }
  });
})();
