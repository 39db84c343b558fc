"use strict";
// The navigation folds the pages of a page away behind a sign that has no name; here it gets one, for those who hear it.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("nav li.has-children > details > summary")) {
    const page = summary.closest("li").querySelector("a").textContent.trim();
    summary.setAttribute("aria-label", `Pages of: ${page}`);
  }
});
