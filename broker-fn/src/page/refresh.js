(() => {
  // Up to how many seconds without a change an interval is used, and the interval in seconds.
  const PACE = [[60, 2], [600, 10], [Infinity, 60]];
  // How long an answer may take, in milliseconds.
  const PATIENCE = 10000;
  let changed = Date.now(), timer, loading = false;

  // Rows are matched by their key, everything else by its position.
  const key = node => node.dataset?.key;
  const isSame = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);
  const place = (parent, node, before) => {
    // A moved node keeps the focus if the browser supports `moveBefore`.
    if (node.parentNode && parent.moveBefore) parent.moveBefore(node, before); else parent.insertBefore(node, before);
  };
  // Changes one tree into the other and touches nothing that is equal, so that the focus and the selection
  // stay. Returns whether more than times has changed.
  const update = (a, b) => {
    const isTime = a.nodeName === 'TIME' || a.parentNode.nodeName === 'TIME';
    let differs = false;
    if (a.nodeType === Node.TEXT_NODE) {
      if (a.data === b.data) return false;
      a.data = b.data;
      return !isTime;
    }
    for (const { name } of [...a.attributes]) {
      if (!b.hasAttribute(name)) { a.removeAttribute(name); differs ||= !isTime; }
    }
    for (const { name, value } of b.attributes) {
      if (a.getAttribute(name) !== value) { a.setAttribute(name, value); differs ||= !isTime; }
    }
    const after = [...b.childNodes], keys = new Set(after.map(key));
    for (const old of [...a.childNodes]) {
      if (key(old) !== undefined && !keys.has(key(old))) { old.remove(); differs = true; }
    }
    after.forEach((node, index) => {
      const there = a.childNodes[index] ?? null;
      if (there && isSame(there, node)) { differs = update(there, node) || differs; return; }
      differs = true;
      const kept = key(node) !== undefined && [...a.childNodes].find(old => isSame(old, node));
      if (kept) { place(a, kept, there); update(kept, node); return; }
      const made = document.importNode(node, true);
      // An existing row is not replaced by a new row that comes before it.
      if (there && key(there) === undefined) there.replaceWith(made); else a.insertBefore(made, there);
    });
    while (a.childNodes.length > after.length) { a.lastChild.remove(); differs = true; }
    return differs;
  };

  const load = async () => {
    if (loading) return;
    loading = true;
    try {
      // Uses the origin, because a URL with a user name and a password can't be fetched.
      const answer = await fetch(location.origin + location.pathname + location.search, {
        headers: { accept: 'text/html' }, cache: 'no-store', signal: AbortSignal.timeout(PATIENCE),
      });
      if (!answer.ok || !answer.headers.get('content-type')?.startsWith('text/html')) throw new Error('no page');
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.title = page.title;
      if (update(document.body, page.body)) changed = Date.now();
    } catch {
      // The page stays as it was, with a note that it is out of date.
      document.body.classList.add('away');
    }
    loading = false;
    wait();
  };
  const wait = () => {
    clearTimeout(timer);
    // A hidden page is not refreshed. It refreshes as soon as it is shown again.
    if (document.hidden) return;
    const quiet = (Date.now() - changed) / 1000;
    timer = setTimeout(load, 1000 * PACE.find(([most]) => quiet < most)[1]);
  };
  document.addEventListener('visibilitychange', () => {
    clearTimeout(timer);
    if (!document.hidden) load();
  });
  wait();
})();
