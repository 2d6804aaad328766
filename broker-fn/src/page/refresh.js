(() => {
  // Seconds without a change, and how many pass until the next look then.
  const PACE = [[60, 2], [600, 10], [Infinity, 60]];
  // How long an answer may take, in milliseconds.
  const PATIENCE = 10000;
  let changed = Date.now(), timer, loading = false;

  // Rows are known by what they are of, all else by its place.
  const key = node => node.dataset?.key;
  const isSame = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);
  const place = (parent, node, before) => {
    // What is moved keeps the focus, where the browser can do that.
    if (node.parentNode && parent.moveBefore) parent.moveBefore(node, before); else parent.insertBefore(node, before);
  };
  // Makes one tree what the other is, and touches nothing that is so already: what has the focus or is selected keeps it.
  // Whether more than the time has changed.
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
      // A row that is there already is not given up for one that is new before it.
      if (there && key(there) === undefined) there.replaceWith(made); else a.insertBefore(made, there);
    });
    while (a.childNodes.length > after.length) { a.lastChild.remove(); differs = true; }
    return differs;
  };

  const load = async () => {
    if (loading) return;
    loading = true;
    try {
      // By the origin: an address with a name and a password in it is none that can be fetched.
      const answer = await fetch(location.origin + location.pathname + location.search, {
        headers: { accept: 'text/html' }, cache: 'no-store', signal: AbortSignal.timeout(PATIENCE),
      });
      if (!answer.ok || !answer.headers.get('content-type')?.startsWith('text/html')) throw new Error('no page');
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.title = page.title;
      if (update(document.body, page.body)) changed = Date.now();
    } catch {
      // What was shown stays, and says that it is of before.
      document.body.classList.add('away');
    }
    loading = false;
    wait();
  };
  const wait = () => {
    clearTimeout(timer);
    // Nobody sees a page behind others; whoever comes back to it sees what is so now.
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
