/* The filter of the ledger: by chapter, verdict, source and words. The page is whole without it.

   What is asked for stands in the address, as in ledger.html#chapter=3&verdict=contradicted, so that a view can be
   linked and kept. Nothing is fetched: the page's own tables are hidden and shown row by row. */
(() => {
  "use strict";

  const ASKED = ["chapter", "verdict", "source", "words"];

  function make(name, attributes, ...children) {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children);
    return element;
  }

  /** The page's claims: their rows, and what they can be asked for. */
  function claims() {
    return [...document.querySelectorAll("tr span[data-verdict]")].map((mark) => {
      const row = mark.closest("tr");
      const section = mark.closest("section");
      const { verdict, source } = mark.dataset;
      const { chapter } = section.querySelector("[data-chapter]").dataset;
      return { row, section, chapter, verdict, source, words: row.textContent.toLowerCase() };
    });
  }

  function heading(section) {
    return section.querySelector("h2").firstChild.textContent;
  }

  /** What may be chosen for each question, as pairs of value and words. */
  function choices(all) {
    const chapters = new Map(all.map((one) => [one.chapter, heading(one.section)]));
    const verdicts = new Map([...document.querySelectorAll("li span[id^='verdict=']")].map((place) => {
      const verdict = place.id.split("=")[1];
      return [verdict, verdict];
    }));
    const sources = new Map([...document.querySelectorAll("td span[id^='source=']")]
      .filter((place) => !place.id.includes("&"))
      .map((place) => [place.id.split("=")[1], place.closest("td").textContent.trim()]));
    return { chapter: chapters, verdict: verdicts, source: sources };
  }

  function start() {
    const place = document.getElementById("ledger-filter");
    if (!place) return;
    const all = claims();
    const sections = new Set(all.map((one) => one.section));
    const fields = {};
    const form = make("form", { className: "ledger-filter" });
    form.setAttribute("role", "search");
    form.setAttribute("aria-label", "The ledger");
    for (const [name, values] of Object.entries(choices(all))) {
      fields[name] = make("select", {}, make("option", { value: "" }, "all"),
        ...[...values].map(([value, words]) => make("option", { value }, words)));
      form.append(make("label", { className: `ledger-${name}` }, make("span", {}, name), fields[name]));
    }
    // Places for browsers without the filter: with it, they would draw the page away from what is asked for.
    for (const one of document.querySelectorAll("span[id*='=']")) {
      one.dataset.place = one.id;
      one.removeAttribute("id");
    }
    fields.words = make("input", { type: "search", autocomplete: "off" });
    form.append(make("label", { className: "ledger-words" }, make("span", {}, "words"), fields.words));
    form.append(make("button", { type: "reset" }, "Show all"));
    const said = make("p", { className: "ledger-said" });
    said.setAttribute("role", "status"); // spoken when it changes, without taking the focus
    said.setAttribute("aria-live", "polite");
    place.append(form, said);

    function show() {
      const wanted = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = all.filter((one) =>
        ["chapter", "verdict", "source"].every((name) => !fields[name].value || fields[name].value === one[name]) &&
        wanted.every((word) => one.words.includes(word)));
      const rows = new Set(shown.map((one) => one.row));
      const alive = new Set(shown.map((one) => one.section));
      for (const { row } of all) row.hidden = !rows.has(row);
      for (const section of sections) section.hidden = !alive.has(section);
      said.textContent = `${shown.length} of ${all.length} claims shown`;
    }

    function write() {
      const state = new URLSearchParams(ASKED.map((name) => [name, fields[name].value.trim()]).filter((one) => one[1]));
      const address = location.href.split("#")[0];
      history.replaceState(null, "", String(state) ? `${address}#${state}` : address);
    }

    /** Take up the state of the address; an address without one, such as a heading's, shows all. */
    function read() {
      const state = new URLSearchParams(location.hash.slice(1));
      const asked = ASKED.some((name) => state.get(name));
      for (const name of ASKED) {
        fields[name].value = state.get(name) || "";
        if (fields[name].selectedIndex === -1) fields[name].value = ""; // no such chapter, verdict or source
      }
      show();
      const target = asked ? form : document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target) target.scrollIntoView();
    }

    form.addEventListener("input", () => { show(); write(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { show(); write(); }));
    window.addEventListener("hashchange", read);
    read();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
