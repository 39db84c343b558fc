/* What the theme leaves undone for those who read by keyboard or by ear. It fetches nothing, and without it the page is whole. */
(() => {
  "use strict";

  /* Whatever scrolls sideways must be reachable by keyboard, and say what it is. The theme sees to blocks of code alone. */
  const SCROLLS = [
    ["div.math, span.math.wide", "Formula"],
    [".pst-scrollable-table-container, .cell_output .output.text_html", "Table"],
  ];
  const reach = () => {
    for (const formula of document.querySelectorAll("p span.math, li span.math")) {
      formula.classList.remove("wide");
      const line = formula.closest("p, li");
      formula.classList.toggle("wide", formula.scrollWidth > line.clientWidth);
    }
    for (const [selector, name] of SCROLLS) {
      for (const box of document.querySelectorAll(selector)) {
        if (box.scrollWidth > box.clientWidth) {
          box.tabIndex = 0;
          box.setAttribute("role", "group");
          box.setAttribute("aria-label", `${name}, scrolls sideways`);
        } else if (box.getAttribute("aria-label") === `${name}, scrolls sideways`) {
          for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
        }
      }
    }
  };

  /* The search lies over the page: while it is open the focus stays in it, and it goes back where it came from. */
  const guardSearch = () => {
    const search = document.querySelector(".search-button__wrapper");
    const input = search?.querySelector("input");
    if (!input) return;
    let from = null;
    // Both listeners come before the theme's, whose script is loaded later; it opens, closes and drops the focus.
    window.addEventListener(
      "keydown",
      (event) => {
        const open = search.classList.contains("show");
        if (!open && (event.ctrlKey || event.metaKey) && /^k$/i.test(event.key)) from = document.activeElement;
        if (open && event.key === "Tab") {
          event.preventDefault();
          input.focus();
        }
      },
      true,
    );
    document.addEventListener(
      "click",
      (event) => {
        const button = event.target.closest?.(".search-button__button");
        if (button) from = button;
      },
      true,
    );
    new MutationObserver(() => {
      if (search.classList.contains("show")) return;
      // A press of Ctrl+K on a page that had no focus leaves it with the button of the search.
      const button = [...document.querySelectorAll(".search-button__button")].find((one) => one.checkVisibility());
      (from && from !== document.body && from.isConnected ? from : button)?.focus();
      from = null;
    }).observe(search, { attributes: true, attributeFilter: ["class"] });
  };

  /* A folded cell is called "Toggle hidden content" by its markup, and something else on the screen: let it be called as it reads. */
  const nameFolds = () => {
    for (const summary of document.querySelectorAll("details.hide > summary")) {
      summary.removeAttribute("aria-label");
      if (summary.closest(".tag_solution")) {
        const details = summary.parentElement;
        const name = () => summary.setAttribute("aria-label", details.open ? "Hide the solution" : "Show the solution");
        name();
        details.addEventListener("toggle", name);
      }
    }
  };

  /* A copy button lets go of the focus when it has copied; a press of Tab goes on from where one is. */
  const keepPlace = () => {
    document.addEventListener("click", (event) => {
      const button = event.target.closest(".copybtn");
      if (button) setTimeout(() => button.focus({ preventScroll: true }));
    });
  };

  /* The source of a page is to be kept, not shown in another tab, whatever type its host gives to notebooks. */
  const keepDownloads = () => {
    for (const link of document.querySelectorAll(".btn-download-source-button")) {
      link.setAttribute("download", "");
      link.removeAttribute("target");
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    guardSearch();
    nameFolds();
    keepDownloads();
    keepPlace();
    document.addEventListener("toggle", reach, true);
    window.addEventListener("resize", reach);
  });
  window.addEventListener("load", () => {
    reach();
    window.MathJax?.startup?.promise?.then(reach);
  });
})();
