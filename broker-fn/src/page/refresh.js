(() => {
  // Seconds without a change, and how many pass until the next look then.
  const PACE = [[60, 2], [600, 10], [Infinity, 60]];
  let changed = Date.now(), timer;

  const isSame = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName;
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
    const before = [...a.childNodes], after = [...b.childNodes];
    after.forEach((node, index) => {
      const old = before[index];
      if (old && isSame(old, node)) { differs = update(old, node) || differs; return; }
      const made = document.importNode(node, true);
      if (old) old.replaceWith(made); else a.append(made);
      differs = true;
    });
    for (const left of before.slice(after.length)) { left.remove(); differs = true; }
    return differs;
  };

  const load = async () => {
    try {
      // By the origin: an address with a name and a password in it is none that can be fetched.
      const answer = await fetch(location.origin + location.pathname + location.search, { headers: { accept: 'text/html' }, cache: 'no-store' });
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.title = page.title;
      if (update(document.body, page.body)) changed = Date.now();
    } catch {
      // What was shown stays, and says that it is of before.
      document.body.classList.add('away');
    }
    wait();
  };
  const wait = () => {
    const quiet = (Date.now() - changed) / 1000;
    timer = setTimeout(load, 1000 * PACE.find(([most]) => quiet < most)[1]);
  };
  // Nobody sees a page behind others; whoever comes back to it sees what is so now.
  document.addEventListener('visibilitychange', () => {
    clearTimeout(timer);
    if (!document.hidden) load();
  });
  wait();
})();
