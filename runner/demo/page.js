(() => {
  const root = document.documentElement, open = new Set();
  root.dataset.view = "image";
  document.addEventListener("input", ({ target }) => {
    if (target.name === "view") root.dataset.view = target.value;
    if (target.name !== "wipe") return;
    root.style.setProperty("--wipe", `${target.value}%`);
    const wiped = document.querySelector('input[name="view"][value="wipe"]');
    wiped.checked = true;
    root.dataset.view = "wipe";
  });
  document.addEventListener("click", async ({ target }) => {
    if (!target.matches("[data-copy]")) return;
    const text = target.parentElement.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    target.textContent = "copied";
    setTimeout(() => { target.textContent = "copy"; }, 1500);
  });
  // While cells are being drawn the grid is replaced; what was unfolded stays so.
  document.addEventListener("toggle", ({ target }) => {
    if (target.isConnected && target.id) open[target.open ? "add" : "delete"](target.id);
  }, true);
  new MutationObserver(() => {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  }).observe(root, { childList: true, subtree: true });
})();
