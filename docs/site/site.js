// What the theme leaves to be done for keyboards and screen readers, on elements that it makes itself.
function complete() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
    else box.removeAttribute("tabindex")
  }
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
  for (const bar of document.querySelectorAll(".md-code__nav")) bar.setAttribute("role", "presentation")
}

new MutationObserver(complete).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", complete)
complete()
