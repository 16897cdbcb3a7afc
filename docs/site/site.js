// What the theme leaves to be done for keyboards and screen readers, on elements that it makes itself.
function complete() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
    else box.removeAttribute("tabindex")
  }
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
  // The contents of a page are there twice: in the drawer of narrow windows, and beside the text of wide ones.
  document.querySelector(".md-nav--primary .md-nav--secondary")?.setAttribute("aria-label", "On this page")
  for (const bar of document.querySelectorAll(".md-code__nav")) bar.setAttribute("role", "presentation")
}

new MutationObserver(complete).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", complete)
complete()
