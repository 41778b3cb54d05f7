"""The board's script and style: small, and sent by the board itself."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--line:#8884;--quiet:#595959;--link:#0a58a8;--good:#1a6b2c;--bad:#b3261e;--back:#fff}
@media (prefers-color-scheme:dark){:root{--quiet:#a8a8a8;--link:#8ab8f0;--good:#7bd08c;--bad:#ff8a80;--back:#16181b}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:0 auto;padding:0 1rem 3rem;background:var(--back)}
header{display:flex;gap:1.5rem;align-items:baseline;padding:1rem 0;border-bottom:1px solid var(--line)}
header a.name{font-weight:700;font-size:1.1rem}
a{color:var(--link)}h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%;font-size:.93em}.wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line)}
td{overflow-wrap:anywhere}td.n{white-space:nowrap;font-variant-numeric:tabular-nums}td.text{white-space:pre-wrap}
pre{overflow:auto;padding:1rem;background:#8882;font-size:.9em}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts svg{max-width:100%;height:auto}
.quiet{color:var(--quiet)}.done{color:var(--good)}.failed,.interrupted,.problem{color:var(--bad)}
form.row{display:inline}form.tall{display:grid;gap:1rem;max-width:42rem}
label{display:grid;gap:.2rem}input,select,textarea,button{font:inherit;padding:.45rem .6rem}
label.tick{display:block}details{border:1px solid var(--line);padding:.5rem .8rem}summary{cursor:pointer}
.inside{display:grid;gap:1rem;margin-top:1rem}textarea.short{min-height:5rem;font:inherit}nav{margin:.5rem 0}
textarea{font:13px/1.5 ui-monospace,monospace;min-height:24rem}
button{cursor:pointer}:focus-visible{outline:3px solid var(--link);outline-offset:2px}
progress{width:10rem}iframe{width:100%;height:32rem;border:1px solid var(--line)}
"""

SCRIPT = """
'use strict';
// Where a run begins or ends, its page has other buttons, and is loaded again.
// What is live is asked for again every two seconds, as HTML that this board made, while the page is looked at.
const live = document.querySelector('[data-live]');
function renew(text) {
  // what is ticked stays ticked, and what has the focus keeps it
  const ticked = new Set([...live.querySelectorAll(':checked')].map(box => box.value));
  const at = live.contains(document.activeElement) && document.activeElement, name = at && (at.href || at.value);
  live.innerHTML = text;
  for (const box of live.querySelectorAll('input')) box.checked = ticked.has(box.value);
  if (name) [...live.querySelectorAll('a, input')].find(part => (part.href || part.value) === name)?.focus();
}
async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch(live.dataset.live);
      const state = answer.headers.get('x-state');
      if (state && state !== live.dataset.state) return location.reload();
      if (answer.ok) {
        const text = await answer.text();
        if (text !== look.last) renew(look.last = text);
      }
    } catch (error) { /* the board has ended; it may come again */ }
  }
  setTimeout(look, 2000);
}
if (live) setTimeout(look, 2000);

// A file that is chosen goes to the board's folder; its name then stands in the form.
const chosen = document.querySelector('input[type=file]');
if (chosen) chosen.addEventListener('change', async () => {
  const said = document.querySelector('#said'), file = chosen.files[0];
  if (!file) return;
  said.textContent = `sending ${file.name} ...`;
  const token = document.querySelector('input[name=token]').value;
  const answer = await fetch('/files?name=' + encodeURIComponent(file.name), {
    method: 'POST', body: file, headers: {'x-board-token': token},
  });
  const text = await answer.text();
  said.textContent = answer.ok ? `${text} is here` : text;
  if (answer.ok) document.querySelector('input[name=data]').value = text;
});
for (const form of document.querySelectorAll('form[data-wait]'))
  form.addEventListener('submit', () => {
    const button = form.querySelector('button');
    button.disabled = true;
    button.textContent = form.dataset.wait;
  });
"""
