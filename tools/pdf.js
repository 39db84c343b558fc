// Arranges the pages of the built site as one printed book, in an empty page of the same place. Run by tools/pdf.py.

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const link = (id, ...children) => element("a", { href: `#${id}` }, ...children);
const pageNumber = (id) => element("span", { className: "number" }, "000"); // as wide as most, until it is known
const onPage = (id, ...before) => {
  const made = link(id, ...before, pageNumber());
  made.dataset.to = id;
  return made;
};
const startOf = (name) => name.replaceAll("/", "-");
const idIn = (name, id) => `${startOf(name)}--${id}`;
const plain = (heading) => heading.textContent.trim();

// What belongs to a screen, or to a dark one.
const CHROME = ".only-dark, .headerlink, .toctree-wrapper, .d-print-none, script, noscript, button, form, input, select, iframe";

// The article of one page of the site, with its own names for all places, and links that lead within the book or out of it.
async function article(name, names, address) {
  const here = new URL(`${name}.html`, document.baseURI);
  const text = await (await fetch(here)).text();
  const found = document.adoptNode(new DOMParser().parseFromString(text, "text/html").querySelector("article"));
  const body = element("div", { className: "article" }, ...found.childNodes);
  for (const one of body.querySelectorAll(CHROME)) one.remove();
  const ids = new Set();
  for (const one of body.querySelectorAll("[id]:not(svg *)")) {
    ids.add(one.id);
    one.id = idIn(name, one.id);
  }
  for (const style of body.querySelectorAll("style")) {
    style.textContent = style.textContent.replace(/#([\w-]+)/g, (all, id) => (ids.has(id) ? `#${idIn(name, id)}` : all));
  }
  for (const image of body.querySelectorAll("img")) image.src = new URL(image.getAttribute("src"), here).href;
  for (const one of body.querySelectorAll("a.image-reference")) one.replaceWith(...one.childNodes);
  for (const one of body.querySelectorAll("a[href]")) {
    const target = new URL(one.getAttribute("href"), here);
    if (target.origin !== here.origin) continue;
    const page = decodeURIComponent(target.pathname).replace(/^\//, "").replace(/\.html$/, "");
    const place = decodeURIComponent(target.hash.slice(1));
    if (names.has(page)) one.setAttribute("href", `#${place ? idIn(page, place) : startOf(page)}`);
    else one.href = address + target.pathname.slice(1) + target.hash;
  }
  return body;
}

// Headings one level further down, so that the parts of the book stand above its chapters.
function lower(body) {
  for (const heading of [...body.querySelectorAll("h1, h2, h3, h4, h5")]) {
    heading.replaceWith(element(`h${Number(heading.tagName[1]) + 1}`, {}, ...heading.childNodes));
  }
}

// A picture and the paragraph that follows it stay on one page.
function frameFigures(body) {
  for (const image of body.querySelectorAll(".cell_output > img, .cell_output > p > img:only-child")) {
    const picture = image.parentElement.tagName === "P" ? image.parentElement : image;
    const caption = picture.nextElementSibling;
    const figure = element("figure");
    picture.replaceWith(figure);
    figure.append(image);
    if (caption?.tagName === "P") figure.append(element("figcaption", {}, ...caption.childNodes)), caption.remove();
  }
}

// Whether a piece of code looks like the code around it, by its class: most do, and need no element of their own.
const looks = new Map();
function looksPlain(piece, pre) {
  if (!looks.has(piece.className)) {
    const [own, around] = [getComputedStyle(piece), getComputedStyle(pre)];
    looks.set(piece.className, ["color", "fontWeight", "fontStyle"].every((one) => own[one] === around[one]));
  }
  return looks.get(piece.className);
}

// Each line of code is a block of its own, whose continuation, if it is too long, stands further in than its beginning.
function setLines(pre) {
  const lines = [element("span", { className: "line" })];
  for (const node of [...pre.childNodes]) {
    const bare = node.nodeType === Node.TEXT_NODE || looksPlain(node, pre);
    node.textContent.split("\n").forEach((text, index) => {
      if (index) lines.push(element("span", { className: "line" }));
      if (!text) return;
      lines.at(-1).append(bare ? text : element("span", { className: node.className }, text));
    });
  }
  while (lines.length && !lines.at(-1).textContent.trim()) lines.pop();
  for (const line of lines) {
    const indent = line.textContent.search(/\S|$/) + 4;
    line.style.paddingLeft = `${indent}ch`;
    line.style.textIndent = `-${indent}ch`;
    line.append("\n");
    line.normalize();
  }
  pre.replaceChildren(...lines);
  pre.classList.toggle("short", lines.length <= 16);
}

// Moves what the site folds to the end of the book: the solutions, and the code that a reader of the text can do without.
// Each leaves behind the page on which to find it. Settings, and proofs in the text, stay where they are, unfolded.
function gather(body, name, solutions, codes) {
  const move = (kind, where, cell, place, parts) => {
    const title =
      cell.querySelector("pre").textContent.match(/^\s*#\s?@title (.+)/)?.[1].trim() ??
      cell.querySelector("figcaption strong")?.textContent.trim().replace(/\.$/, "") ??
      plain(cell.closest("section").querySelector("h1, h2, h3, h4, h5, h6"));
    const id = idIn(name, `${kind.toLowerCase()}-in-print-${where.childElementCount}`);
    const note = element("p", { className: "elsewhere", id: `${id}-from` }, onPage(id, `${kind} on page `));
    place.before(note);
    where.append(element("p", { className: "gathered", id }, element("strong", {}, title), onPage(note.id, "from page ")), ...parts);
  };
  for (const cell of body.querySelectorAll(".cell.tag_solution")) {
    const parts = [cell];
    while (parts.at(-1).nextElementSibling?.matches("details")) parts.push(parts.at(-1).nextElementSibling);
    move("Solution", solutions, cell, cell, parts);
  }
  for (const folded of body.querySelectorAll(".cell:not(.tag_parameters) > details.above-input")) {
    const end = folded.parentElement.appendChild(element("span"));
    move("Code", codes, folded.parentElement, end, folded.querySelectorAll(".cell_input"));
    end.remove();
  }
  for (const root of [body, solutions, codes]) {
    for (const folded of root.querySelectorAll("details")) {
      const summary = folded.querySelector("summary");
      if (folded.matches(".hide")) summary.remove();
      else summary.replaceWith(element("p", { className: "summary" }, ...summary.childNodes));
      folded.replaceWith(element("div", { className: "unfolded" }, ...folded.childNodes));
    }
  }
}

// A live figure shows its still picture, and where it lives.
function nameLiveFigures(body, name, address) {
  for (const cell of body.querySelectorAll('.cell[class*="tag_interactive"]')) {
    const where = `${address}${name}.html`;
    cell.append(element("p", { className: "elsewhere" }, "A figure to try out on the site: ", element("a", { href: where }, where)));
  }
}

// On paper a link needs its address beside it.
function showAddresses(body) {
  for (const one of body.querySelectorAll("a[href^='http']")) {
    const address = one.href.replace(/^https?:\/\/(www\.)?/, "").replace(/\/$/, "");
    if (one.textContent.trim() && !one.textContent.includes(address)) {
      one.after(" ", element("span", { className: "address" }, `(${address})`));
    }
  }
}

// The cards of the front page that show the chapters of a part, for the page that opens the part.
function takeCards(front, caption) {
  for (const heading of front.querySelectorAll("h2")) {
    if (plain(heading) !== caption) continue;
    const section = heading.parentElement;
    const cards = [...section.querySelectorAll(":scope > .sd-container-fluid")];
    for (const card of cards) card.remove();
    heading.remove();
    section.replaceWith(...section.childNodes);
    for (const shown of cards.flatMap((one) => [...one.querySelectorAll(".sd-card")])) {
      const title = shown.querySelector(".sd-card-title");
      const target = shown.querySelector("a.sd-stretched-link");
      title.replaceWith(onPage(target.getAttribute("href").slice(1), ...title.childNodes, ", page "));
      target.remove();
    }
    return cards;
  }
  return [];
}

// What a reader of the print should know of it.
function explain(solutions, codes) {
  const texts = ["This file holds every page of the site, in the same order. The contents and every reference in the text lead to their pages."];
  if (solutions.length) texts.push("The solutions to the exercises are gathered at the end.");
  if (codes.length) {
    texts.push("So is the code that the site folds away, such as that which draws the figures: a note beside each result gives its page.");
  }
  texts.push("What else the site folds, such as settings and proofs, stands unfolded in its place. A figure that moves on the site is still here.");
  return [element("p", {}, texts.join(" "))];
}

// Builds the book into the page; `book` is what tools/pdf.py says of it. Returns its outline, as [level, title, place] for
// each entry, and one sentence for each thing that is wrong.
async function arrange(book) {
  const names = new Set([book.root, ...book.parts.flatMap((part) => part.pages)]);
  const sheets = []; // the parts of the book with the page on which each begins
  const add = (left, right, id, ...children) => {
    const sheet = element("section", { className: "sheet", id }, ...children);
    sheet.style.page = `sheet${sheets.length}`;
    sheets.push([sheet, left, right]);
    return sheet;
  };

  const front = await article(book.root, names, book.address);
  front.querySelector("h1").replaceChildren("About this book");
  const cover = add("", "", "title-page",
    element("p", { className: "title" }, book.title),
    element("p", { className: "subtitle" }, book.subtitle),
    element("p", { className: "author" }, book.author),
    element("div", { className: "imprint" }, ...book.imprint.map((html) => element("p", { innerHTML: html }))));
  cover.classList.add("title-page");
  const contents = element("ol", { className: "contents" });
  add("", "Contents", "contents", element("h1", {}, "Contents"), contents);
  add("", "About this book", startOf(book.root), front).classList.add("front");
  const [solutions, codes] = [[], []]; // of each chapter that has some: its title and name, and what it has
  for (const part of book.parts) {
    const opening = add("", part.caption, "", element("h1", { id: `part-${sheets.length}` }, part.caption));
    const cards = takeCards(front, part.caption);
    opening.append(...cards);
    for (const name of part.pages) {
      const body = await article(name, names, book.address);
      lower(body);
      frameFigures(body);
      const heading = plain(body.querySelector("h2"));
      const [solved, code] = [element("div"), element("div")];
      gather(body, name, solved, code);
      nameLiveFigures(body, name, book.address);
      if (solved.childElementCount) solutions.push([heading, name, solved]);
      if (code.childElementCount) codes.push([heading, name, code]);
      if (!cards.length) opening.append(element("p", {}, onPage(startOf(name), heading, ", page ")));
      add(part.caption, heading, startOf(name), body);
    }
  }
  for (const [title, chapters, note] of [
    ["Solutions", solutions, "The solutions to the exercises, with the page on which each exercise stands."],
    ["Code", codes, "The code that the site folds away, with the page on which its result stands."],
  ]) {
    for (const [index, [heading, name, found]] of chapters.entries()) {
      const opening = index ? [] : [element("h1", { id: title.toLowerCase() }, title), element("p", {}, note)];
      add(title, heading, "", ...opening, element("h2", { id: idIn(title.toLowerCase(), startOf(name)) }, heading), found);
    }
  }
  front.append(element("h2", {}, "About this print"), ...explain(solutions, codes));

  const style = element("style");
  for (const [index, [sheet, left, right]] of sheets.entries()) {
    document.body.append(sheet);
    const box = (side, text) => `@top-${side} { content: ${JSON.stringify(text)}; }`;
    style.append(`@page sheet${index} { ${box("left", left)} ${box("right", right)} }\n`);
  }
  style.append("@page sheet0 { @bottom-center { content: none; } }");
  document.head.append(style);
  for (const sheet of document.querySelectorAll(".article")) showAddresses(sheet);
  for (const pre of document.querySelectorAll("pre")) setLines(pre);
  const outline = listContents(contents);

  await MathJax.startup.promise;
  await MathJax.typesetPromise();
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  fit();
  return { outline, problems: problems() };
}

// Lists parts, chapters and their sections, each with its page; returns the list.
function listContents(contents) {
  const outline = [];
  for (const heading of document.querySelectorAll(".sheet :is(h1, h2, h3)")) {
    const sheet = heading.closest(".sheet");
    if (sheet.contains(contents) || (sheet.matches(".front") && heading.tagName !== "H1")) continue;
    const [level, id] = [Number(heading.tagName[1]), heading.closest("[id]").id];
    const title = element("span", {}, ...heading.cloneNode(true).childNodes);
    contents.append(element("li", { className: `level${level}` }, onPage(id, title, element("span", { className: "dots" }))));
    outline.push([level, plain(heading).replace(/\\[()]/g, ""), id]); // a formula as it is typed
  }
  return outline;
}

// What is too wide is set smaller: a formula as much as it needs, the type of a table in steps, down to a size still readable.
function fit() {
  for (const box of document.querySelectorAll("div.math")) {
    const ratio = box.clientWidth / box.scrollWidth;
    if (ratio < 1) box.style.fontSize = `${Math.floor(ratio * 98)}%`;
  }
  for (const table of document.querySelectorAll(".article table")) {
    const room = table.parentElement.clientWidth;
    for (const size of [8, 7.25, 6.5]) {
      if (table.offsetWidth > room) table.style.fontSize = `${size}pt`;
    }
    if (table.offsetWidth > room) table.classList.add("crowded");
  }
}

// What is wrong with the book as it stands, one sentence each.
function problems() {
  const found = [];
  for (const one of document.querySelectorAll("a[href^='#']")) {
    const id = decodeURIComponent(one.getAttribute("href").slice(1));
    if (!document.getElementById(id)) found.push(`the link to ${id} leads nowhere`);
  }
  for (const one of document.querySelectorAll("img")) {
    if (!one.naturalWidth) found.push(`the picture ${one.src.slice(0, 80)} is missing`);
  }
  for (const one of document.querySelectorAll("mjx-merror")) found.push(`a formula was not understood: ${one.textContent}`);
  const right = document.body.getBoundingClientRect().right;
  for (const one of document.querySelectorAll(".sheet *:not(mjx-container *)")) {
    if (!one.clientWidth) continue; // in a line, which its block contains or not
    if (one.getBoundingClientRect().right <= right + 1 && one.scrollWidth <= one.clientWidth + 1) continue;
    const text = one.textContent.trim().replace(/\s+/g, " ").slice(0, 60);
    found.push(`${one.closest(".sheet").id}: this is wider than a page: ${text || one.outerHTML.slice(0, 60)}`);
  }
  return [...new Set(found)];
}

// Writes to each reference the page of its place.
function setNumbers(pages) {
  for (const one of document.querySelectorAll("[data-to]")) one.querySelector(".number").textContent = pages[one.dataset.to];
}
