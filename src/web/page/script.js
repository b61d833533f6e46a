'use strict';
const PERIOD = 1000, TIMEOUT = 5000, ROWS = 10, EVENTS = 50;
// What a span shows: samples, seconds each, how many are fetched to go on, and how often.
const SPANS = {
  seconds: { length: 600, step: 1, tail: 5, every: 1, ago: '10 min ago' },
  minutes: { length: 1440, step: 60, tail: 3, every: 20, ago: '24 h ago' },
};
const SVG = 'http://www.w3.org/2000/svg';
const $ = id => document.getElementById(id);

// Whatever comes from elsewhere gets into the page by these, as text.
function make(name, parent, className = '', text = '') {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  parent?.append(element);
  return element;
}
function draw(name, parent, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  parent.append(element);
  return element;
}
function put(element, text, className) {
  if (element.textContent !== text) element.textContent = text;
  if (className !== undefined && element.className !== className) element.className = className;
}
// So many children, made and removed at the end, so that nothing above them moves.
function keep(parent, count, maker) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) maker(parent);
  return parent.children;
}

const three = value => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
function scaled(value, unit) {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P'];
  let power = 0;
  while (value >= 999.5 && power < 5) { value /= 1000; power++; }
  return (power ? three(value) : Math.round(value)) + ' ' + prefixes[power] + unit;
}
const rate = value => scaled(value, 'bit/s');
const bytes = value => scaled(value, 'B');
const ms = value => value === null ? '–' : three(value) + ' ms';
function duration(seconds) {
  const units = [[86400, 'd', 3600, 'h'], [3600, 'h', 60, 'min'], [60, 'min', 1, 's']];
  const [large, name, small, smallName] = units.find(unit => seconds >= unit[0]) ?? [1, 's'];
  const rest = small ? Math.floor(seconds % large / small) : 0;
  return Math.floor(seconds / large) + ' ' + name + (rest ? ` ${rest} ${smallName}` : '');
}
const clock = unix => new Date(unix * 1000).toLocaleTimeString([], { hour12: false });

const STATES = {
  bonding: 'good', single: 'good', connecting: 'warn', disabled: 'quiet', unconfigured: 'quiet',
};
function word(uplink) {
  if (uplink.state === 'down') return ['✕ down', 'bad'];
  if (uplink.state === 'unused') return ['– unused', 'quiet'];
  if (!uplink.in_use) return ['○ standby', 'quiet'];
  return uplink.state === 'degraded' ? ['◐ degraded', 'warn'] : ['● in use', 'good'];
}
function serverWord(server) {
  if (server.state === 'connected')
    return server.mptcp === false ? ['◐ plain TCP', 'bad'] : ['● connected', 'good'];
  return { connecting: ['◐ connecting', 'warn'], lost: ['✕ lost', 'bad'] }[server.state] ??
    ['○ standby', 'quiet'];
}

// ---- cards

function newCard(parent, chip) {
  const card = make('article', parent, 'card');
  const head = make('h3', card);
  if (chip) draw('rect', draw('svg', head, { class: 'chip', viewBox: '0 0 1 1', 'aria-hidden': true }),
    { width: 1, height: 1, class: chip });
  card.name = make('b', head);
  card.word = make('span', head, 'word');
  card.reason = make('p', card, 'reason');
  return card;
}
function facts(card, list) {
  card.facts ??= make('dl', card);
  const cells = keep(card.facts, list.length * 2, parent => {
    make('dt', parent);
    make('dd', parent);
  });
  list.forEach(([name, value], index) => {
    put(cells[index * 2], name);
    put(cells[index * 2 + 1], value || '–');
  });
}
function newUplink(parent) {
  const card = newCard(parent, 'c' + parent.children.length);
  const rates = make('div', card, 'rates');
  [card.down, card.up] = ['Download', 'Upload'].map(name => {
    const side = make('p', rates);
    make('span', side, '', name);
    return side.appendChild(document.createTextNode(''));
  });
}
function showUplink(card, uplink) {
  const [text, className] = word(uplink);
  put(card.name, uplink.name);
  put(card.word, text, 'word ' + className);
  const since = `${text.slice(2)} for ${duration(uplink.since_seconds)}`;
  put(card.reason, uplink.reason ? `${since}: ${uplink.reason}` : since);
  card.down.data = rate(uplink.rx_bps);
  card.up.data = rate(uplink.tx_bps);
  const role = uplink.role_set === null ? uplink.role
    : `${uplink.role_set}, set by hand; configured: ${uplink.role}`;
  const rtt = uplink.rtt_ms === null ? '' : ms(uplink.rtt_ms) +
    (uplink.rtt_min_ms === null ? '' : ` (at best ${ms(uplink.rtt_min_ms)})`);
  facts(card, [
    ['Role', role],
    ['Device', uplink.device],
    ['Address', uplink.addresses.join(', ')],
    ['Gateway', uplink.gateways.join(', ')],
    ['Round trip', rtt],
    ['Loss', uplink.loss_percent === null ? '' : uplink.loss_percent.toFixed(1) + ' %'],
    ['Subflows', String(uplink.subflows)],
    ['Received, sent', `${bytes(uplink.rx_bytes)}, ${bytes(uplink.tx_bytes)}`],
  ]);
  showUsage(card, uplink.usage);
}
function showUsage(card, usage) {
  if (!card.quota) {
    card.quota = make('div', card, 'quota');
    const line = make('p', card.quota);
    card.used = make('span', line);
    card.until = make('span', line);
    card.meter = make('meter', card.quota);
    card.days = draw('svg', card.quota,
      { class: 'days', viewBox: '0 0 31 1', preserveAspectRatio: 'none', role: 'img' });
  }
  const quota = usage?.quota_bytes;
  put(card.used, `${bytes(usage?.period_bytes ?? 0)}${quota ? ' of ' + bytes(quota) : ' this month'}`);
  put(card.until, usage?.until && quota ? `anew on ${usage.until}` : '');
  card.meter.hidden = !quota;
  if (!quota) return;
  Object.assign(card.meter, { max: quota, high: quota * .9, optimum: 0, value: usage.period_bytes });
  card.meter.setAttribute('aria-label', 'quota used');
}
function showServer(card, server) {
  const [text, className] = serverWord(server);
  put(card.name, server.name);
  put(card.word, text, 'word ' + className);
  const lost = server.state !== 'connected' && server.last_error;
  const stripped = server.state === 'connected' && server.mptcp === false
    && 'something on the way strips MPTCP options, so nothing is bonded';
  put(card.reason, [stripped, server.reason, !server.reason && lost].filter(Boolean).join('; ')
    || `${text.slice(2)} for ${duration(server.since_seconds)}`);
  facts(card, [
    ['Address', server.address],
    ['In use', server.address_in_use],
    ['Round trip', server.rtt_ms === null ? '' : ms(server.rtt_ms)],
    ['Cipher', server.cipher],
    ['Session', server.session],
  ]);
}

// ---- tables

function cells(row, values) {
  keep(row, values.length, parent => make('td', parent));
  values.forEach(([text, className], index) => put(row.children[index], text, className ?? ''));
}
function showForwards(forwards) {
  $('forwards').closest('section').hidden = !forwards.length;
  const rows = keep($('forwards').tBodies[0], forwards.length, parent => make('tr', parent));
  const states = { forwarded: ['● forwarded', 'good'], denied: ['✕ denied', 'bad'] };
  forwards.forEach((it, index) => cells(rows[index], [
    [it.name], [`${it.port}/${it.protocol}`, 'n'], [it.target], states[it.state] ?? [it.state, 'quiet'], [it.reason],
    [String(it.connections), 'n'],
  ]));
}
function showConnections(connections) {
  const more = connections.total - ROWS;
  put($('total'), `${connections.total} open${more > 0 ? `, the fastest ${ROWS} of them` : ''}`);
  const rows = keep($('connections').tBodies[0], ROWS, parent => make('tr', parent));
  for (let index = 0; index < ROWS; index++) {
    const it = connections.top[index];
    cells(rows[index], it ? [
      [it.client], [it.target], [rate(it.down_bps), 'n'], [rate(it.up_bps), 'n'],
      [bytes(it.down_bytes), 'n'], [bytes(it.up_bytes), 'n'], [duration(it.age_seconds), 'n'],
      [it.subflows === null ? '–' : String(it.subflows), 'n'],
    ] : Array(8).fill(['']));
  }
}
function showEvents(events) {
  const latest = events.slice(-EVENTS).reverse();
  const rows = keep($('events').tBodies[0], Math.max(latest.length, ROWS), parent => make('tr', parent));
  const levels = { error: ['✕ error', 'bad'], warning: ['▲ warning', 'warn'], info: ['info', 'quiet'] };
  for (let index = 0; index < rows.length; index++) {
    const it = latest[index];
    cells(rows[index], it ? [[clock(it.time_unix_seconds)], levels[it.level] ?? [it.level], [it.text]]
      : Array(3).fill(['']));
  }
}
function showProblems(status) {
  const kernel = status.kernel;
  const lines = [
    ...kernel.other_path_managers.map(name =>
      `${name} is running, which manages MPTCP endpoints too: stop one of them`),
    ...kernel.conflicts,
    ...status.failures.map(it => `${it.operation}: ${it.error}, tried again for ${duration(it.since_seconds)}`),
    ...kernel.sysctls_not_set.map(it => `${it.key} is not ${it.wanted}: ${it.error}`),
    ...kernel.counters.filter(it => it.symptom && it.value > 0)
      .map(it => `${it.name} ${it.value}: ${it.meaning}`),
  ];
  if (!lines.length) lines.push('none');
  const items = keep($('problems'), lines.length, parent => make('li', parent));
  lines.forEach((line, index) => put(items[index], line));
}

// ---- graphs

const series = { span: 'seconds', end: 0, names: [], by: {} };
let cursor = null;

function newGraph(id, key) {
  const plot = make('div', $(id), 'plot');
  const svg = draw('svg', plot, { preserveAspectRatio: 'none', role: 'img' });
  const graph = { key, svg, total: $(id).querySelector('strong'), name: id === 'down' ? 'Download' : 'Upload' };
  graph.top = make('span', plot, 'top');
  graph.middle = make('span', plot, 'middle');
  graph.areas = draw('g', svg);
  graph.line = draw('line', svg, { class: 'cursor', y1: 0, y2: 1, visibility: 'hidden' });
  const times = make('div', $(id), 'times');
  graph.ago = make('span', times);
  make('span', times, '', 'now');
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect();
    const length = SPANS[series.span].length;
    cursor = Math.max(0, Math.min(length - 1, Math.floor((event.clientX - box.left) / box.width * length)));
    drawGraphs();
  });
  plot.addEventListener('pointerleave', () => { cursor = null; drawGraphs(); });
  return graph;
}
const graphs = [newGraph('down', 'rx_bps'), newGraph('up', 'tx_bps')];

// The next of 1, 2, 5, 10, 20, ...
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1000)));
  return [1, 2, 5, 10].find(factor => factor * power >= value) * power;
}
function drawGraphs() {
  const { length } = SPANS[series.span];
  for (const graph of graphs) {
    const stacked = new Float64Array(length);
    const edges = series.names.map(name => {
      const values = series.by[name][graph.key];
      for (let index = 0; index < length; index++) stacked[index] += values[index];
      return Array.from(stacked);
    });
    const top = rounded(Math.max(...stacked) * 1.05);
    graph.svg.setAttribute('viewBox', `0 0 ${length - 1} 1`);
    put(graph.top, rate(top));
    put(graph.middle, rate(top / 2));
    put(graph.ago, SPANS[series.span].ago);
    const areas = keep(graph.areas, edges.length, parent => draw('path', parent));
    edges.forEach((edge, index) => {
      const point = (value, x) => `${x} ${(1 - value / top).toFixed(4)}`;
      const below = (edges[index - 1] ?? edge.map(() => 0)).map(point).reverse();
      areas[index].setAttribute('d', `M${edge.map(point).concat(below).join('L')}Z`);
      areas[index].setAttribute('class', 'c' + index);
    });
    graph.line.setAttribute('visibility', cursor === null ? 'hidden' : 'visible');
    for (const end of ['x1', 'x2']) graph.line.setAttribute(end, cursor ?? 0);
    const now = stacked[length - 1];
    graph.svg.setAttribute('aria-label', `${graph.name}, stacked by uplink: ${rate(now)} now, ` +
      `${rate(Math.max(...stacked))} at most in ${$(series.span).textContent}`);
  }
  showLegend();
}
function showLegend() {
  const { length, step } = SPANS[series.span];
  put($('moment'), cursor === null ? '' : `${duration((length - 1 - cursor) * step)} ago:`);
  const items = keep($('legend'), series.names.length, parent => {
    const item = make('li', parent);
    draw('rect', draw('svg', item, { class: 'chip', viewBox: '0 0 1 1', 'aria-hidden': true }),
      { width: 1, height: 1, class: 'c' + (parent.children.length - 1) });
    make('b', item);
    make('span', item);
  });
  series.names.forEach((name, index) => {
    const at = key => rate(series.by[name][key][cursor ?? length - 1]);
    put(items[index].children[1], name);
    put(items[index].children[2], `↓ ${at('rx_bps')}  ↑ ${at('tx_bps')}`);
  });
}

// ---- what is fetched

async function fetched(address) {
  const answer = await fetch(address, { signal: AbortSignal.timeout(TIMEOUT), cache: 'no-store' });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}
// Puts the latest samples in; where they do not follow those that are there, all are fetched.
async function follow(names) {
  const span = series.span, { length, tail } = SPANS[span];
  const address = `history.json?span=${span}`;
  const known = series.end > 0 && names.join('\n') === series.names.join('\n');
  let told = await fetched(known ? `${address}&last=${tail}` : address);
  const more = told.end - series.end;
  const follows = known && more >= 0 && more <= tail;
  if (known && !follows) told = await fetched(address);
  // Another span may have been chosen meanwhile.
  if (span !== series.span) return;
  const by = {};
  for (const name of names) {
    by[name] = {};
    for (const key of ['rx_bps', 'tx_bps']) {
      const values = told.uplinks[name]?.[key] ?? [];
      const old = follows ? series.by[name][key] : Array(length).fill(0);
      const fresh = follows ? values.slice(Math.max(0, values.length - more)) : values;
      by[name][key] = [...old, ...fresh].slice(-length);
    }
  }
  Object.assign(series, { end: told.end, names, by });
  drawGraphs();
}
async function followDays() {
  const told = await fetched('history.json?span=days');
  for (const card of $('uplinks').children) {
    const days = (told.uplinks[card.name.textContent]?.days ?? []).slice(-31);
    const most = Math.max(1, ...days.map(it => it.bytes));
    card.days.setAttribute('aria-label', days.length
      ? `bytes a day: ${bytes(days.at(-1).bytes)} on ${days.at(-1).day}, ${bytes(most)} at most` : 'no days yet');
    keep(card.days, days.length, parent => draw('title', draw('rect', parent, { width: .8 })));
    days.forEach((it, index) => {
      const bar = card.days.children[index], height = it.bytes / most;
      bar.setAttribute('class', 'c' + [...$('uplinks').children].indexOf(card));
      bar.setAttribute('x', 31 - days.length + index + .1);
      bar.setAttribute('y', 1 - height);
      bar.setAttribute('height', height);
      put(bar.firstChild, `${it.day}: ${bytes(it.bytes)}`);
    });
  }
}

function show(status) {
  put($('state'), status.state, 'badge ' + (STATES[status.state] ?? 'bad'));
  put($('summary'), status.summary);
  put($('about'), `${status.version}, running for ${duration(status.uptime_seconds)}, ` +
    `${status.streams.open} open, ${status.streams.failed_total} failed streams`);
  put($('trouble'), status.config_error === null ? ''
    : 'The new configuration is not in force: ' + status.config_error);
  const sum = key => rate(status.uplinks.reduce((sum, uplink) => sum + uplink[key], 0));
  for (const graph of graphs) put(graph.total, sum(graph.key));
  document.title = `${status.state} – mptcp-bond`;
  const uplinks = keep($('uplinks'), status.uplinks.length, newUplink);
  status.uplinks.forEach((uplink, index) => showUplink(uplinks[index], uplink));
  const servers = keep($('servers'), status.servers.length, parent => newCard(parent));
  status.servers.forEach((server, index) => showServer(servers[index], server));
  showForwards(status.forwards);
  showConnections(status.connections);
  showEvents(status.events);
  showProblems(status);
}

let turns = 0, shown = clock(Date.now() / 1000);
async function look() {
  const status = await fetched('status.json');
  show(status);
  shown = clock(status.time_unix_seconds);
  if (turns % SPANS[series.span].every === 0) await follow(status.uplinks.map(it => it.name));
  if (turns % 600 === 0) await followDays();
  turns++;
  document.body.classList.remove('stale');
}
async function turn() {
  try {
    await look();
  } catch (error) {
    document.body.classList.add('stale');
    put($('trouble'), `The agent does not answer (${error.message}); this is how things were at ` +
      `${shown}. Trying again.`);
    turns = 0;
  }
  // Nobody looks at a page in the background; it goes on when it is shown again.
  if (document.hidden) document.addEventListener('visibilitychange', turn, { once: true });
  else setTimeout(turn, PERIOD);
}
for (const span in SPANS) $(span).addEventListener('click', () => {
  for (const other in SPANS) $(other).setAttribute('aria-pressed', other === span);
  Object.assign(series, { span, end: 0, by: {}, names: [] });
  cursor = null;
  follow([...$('uplinks').children].map(card => card.name.textContent)).catch(() => {});
});

show(JSON.parse($('first').textContent));
$('app').hidden = false;
turn();
