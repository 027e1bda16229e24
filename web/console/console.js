// The console: one model of one application, live. It speaks the public API and nothing else: log in, connect, subscribe, apply
// what comes; after a lost connection it goes on from the last offset it has seen.
'use strict';

const $ = (id) => document.getElementById(id);
// Not shown: the same in all rows, or, as `updatedAt`, not told by the frames of changes.
const UNIVERSAL = ['appId', 'type', 'createdAt', 'updatedAt', 'userId', 'version', 'id'];
// What a person looks for first.
const FIRST = ['title', 'name', 'text', 'status'];
const state = { documents: new Map(), columns: [], offset: null, socket: null, calls: new Map(), nextCall: 1, retry: 0 };

// ── HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async function call(method, path, body, type = 'application/json') {
  const headers = { 'nxx-app-id': state.app };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  if (body !== undefined) headers['content-type'] = type;
  const request = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
  const response = await fetch(path, request).catch(() => { throw new Error('the server cannot be reached'); });
  const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) {
    const faults = (answer.errors || []).map((fault) => `${fault.path}: ${fault.message}`);
    throw new Error([answer.detail || answer.title || `status ${response.status}`, ...faults].join(' · '));
  }
  return answer;
}

async function signIn(form) {
  Object.assign(state, { app: form.app, model: form.model, token: null });
  if (form.user) {
    const login = await call('POST', '/user/login', { username: form.user, password: form.password });
    Object.assign(state, { token: login.token, device: login.deviceId, user: login.user.username });
  } else {
    state.device = `console-${Math.random().toString(36).slice(2, 10)}`;
  }
}

// ── The socket ──────────────────────────────────────────────────────────────────────────────────────────────────────
function connect() {
  const query = new URLSearchParams({ app: state.app, device: state.device });
  if (state.offset) query.set('since', state.offset);
  const protocols = state.token ? ['nexxus', `bearer.${state.token}`] : ['nexxus'];
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const socket = new WebSocket(`${scheme}://${location.host}/ws?${query}`, protocols);
  state.socket = socket;
  socket.onmessage = (message) => heard(JSON.parse(message.data));
  socket.onclose = (close) => {
    if (state.socket !== socket) return;
    for (const call of state.calls.values()) call.reject(new Error('the connection was lost before the answer came'));
    state.calls.clear();
    if (close.code === 4001 || close.code === 4003) return leave(close.reason || 'signed out');
    show('away', 'away, coming back');
    state.retry = Math.min(state.retry + 1, 6);
    setTimeout(() => state.socket === socket && connect(), 250 * 2 ** state.retry * (0.5 + Math.random()));
  };
}

function ask(event, data) {
  return new Promise((resolve, reject) => {
    const id = state.nextCall++;
    if (state.socket?.readyState !== WebSocket.OPEN) return reject(new Error('not connected: try again when it is live'));
    state.calls.set(id, { resolve, reject });
    state.socket.send(JSON.stringify({ event, id, data }));
  });
}

async function subscribe() {
  const filter = $('filter-form').filter.value.trim();
  const request = { model: state.model, limit: 200, sort: '-updatedAt' };
  if (filter) request.filter = parsed('the filter', filter);
  const before = state.subscription;
  const answer = await ask('subscribe', request);
  if (before && before !== answer.subscriptionId) ask('unsubscribe', { subscriptionId: before }).catch(() => {});
  state.subscription = answer.subscriptionId;
  state.channel = answer.channel;
  state.offset = answer.offset;
  state.documents = new Map(answer.items.map((item) => [item.id, item]));
  draw();
}

function heard(frame) {
  if (frame.offset && (!state.offset || frame.offset > state.offset)) state.offset = frame.offset;
  const handlers = { hello, reply: settle, error: settle, model_created: created, model_updated: updated, model_deleted: deleted, resync_required: resync };
  if (frame.event !== 'reply' && frame.event !== 'progress') note(frame);
  handlers[frame.event]?.(frame);
}

function hello() {
  state.retry = 0;
  complain({ message: '' });
  show('live', `live · ${state.user || 'no user'}`);
  if (!state.subscription) subscribe().catch(complain);
}

function settle(frame) {
  const waiting = state.calls.get(frame.id);
  if (!waiting) return;
  state.calls.delete(frame.id);
  if (frame.event === 'reply') waiting.resolve(frame.data);
  else waiting.reject(new Error(frame.data.detail || frame.data.title));
}

function resync(frame) {
  setTimeout(() => { state.subscription = null; subscribe().catch(complain); }, 1000 * (frame.data.after || 0));
}

// ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
const isOurs = (frame) => frame.metadata.channels.includes(state.channel);
const isNews = (frame) => !(state.documents.get(frame.metadata.id)?.version >= frame.metadata.version);

function created(frame) {
  if (!isOurs(frame) || !isNews(frame)) return;
  state.documents.set(frame.data.id, frame.data);
  draw({ fresh: frame.data.id });
}

function updated(frame) {
  const { id, version, left, entered } = frame.metadata;
  if (left.includes(state.channel)) {
    state.documents.delete(id);
    return draw();
  }
  if (!isOurs(frame)) return;
  if (entered.includes(state.channel)) {
    state.documents.set(id, frame.document);
    return draw({ fresh: id });
  }
  const known = state.documents.get(id);
  if (!known || !isNews(frame)) return;
  for (const patch of frame.data) apply(known, patch);
  known.version = version;
  draw({ id, changed: frame.data.flatMap((patch) => patch.path.map((path) => path.split('.')[0])) });
}

function deleted(frame) {
  if (!isOurs(frame)) return;
  state.documents.delete(frame.data.id);
  draw();
}

function apply(target, patch) {
  patch.path.forEach((path, index) => {
    const names = path.split('.');
    const last = names.pop();
    const holder = names.reduce((value, name) => (value[name] ??= {}), target);
    const value = patch.value?.[index];
    const list = Array.isArray(value) ? value : [value];
    const operations = {
      replace: () => (holder[last] = value),
      remove: () => delete holder[last],
      incr: () => (holder[last] = (holder[last] ?? 0) + value),
      decr: () => (holder[last] = (holder[last] ?? 0) - value),
      append: () => (holder[last] = typeof value === 'string' && !Array.isArray(holder[last]) ? (holder[last] ?? '') + value : [...(holder[last] ?? []), ...list]),
      prepend: () => (holder[last] = typeof value === 'string' && !Array.isArray(holder[last]) ? value + (holder[last] ?? '') : [...list, ...(holder[last] ?? [])]),
    };
    operations[patch.op]();
  });
}

// ── What is seen ────────────────────────────────────────────────────────────────────────────────────────────────────
function draw(news = {}) {
  const documents = [...state.documents.values()];
  const names = new Set(documents.flatMap(Object.keys).filter((name) => !UNIVERSAL.includes(name)));
  const rest = [...names].filter((name) => !FIRST.includes(name)).sort();
  state.columns = ['id', ...FIRST.filter((name) => names.has(name)), ...rest, 'version'];
  $('columns').replaceChildren(...state.columns.map((name) => cell('th', name)), cell('th', ''));
  $('documents').replaceChildren(...documents.map((item) => row(item, news)));
  $('empty').hidden = documents.length > 0;
  $('count').textContent = documents.length === 1 ? '1 document' : `${documents.length} documents`;
}

function row(item, news) {
  const tr = document.createElement('tr');
  if (news.fresh === item.id) tr.className = 'fresh';
  for (const name of state.columns) {
    const value = item[name];
    const td = cell('td', shown(value));
    td.title = typeof value === 'string' ? value : td.textContent;
    if (news.id === item.id && news.changed?.includes(name)) td.classList.add('changed');
    if (!['id', 'version'].includes(name)) {
      td.classList.add('value');
      td.onclick = () => edit(item, name);
    }
    tr.append(td);
  }
  const remove = document.createElement('button');
  remove.className = 'plain';
  remove.textContent = 'delete';
  remove.onclick = () => write('DELETE', `/model/${state.model}/${encodeURIComponent(item.id)}`);
  const td = cell('td', '');
  td.className = 'last';
  td.append(remove);
  tr.append(td);
  return tr;
}

function shown(value) {
  if (value === undefined) return '';
  if (typeof value === 'object') return JSON.stringify(value);
  const date = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\.\d{3}Z$/.exec(value);
  return date ? `${date[1]} ${date[2]}` : String(value);
}

function parsed(what, text) {
  try { return JSON.parse(text); } catch (error) { throw new Error(`${what} is no JSON: ${error.message}`); }
}

function cell(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function edit(item, name) {
  const text = prompt(`${name} (as JSON, or plain text)`, item[name] === undefined ? '' : JSON.stringify(item[name]));
  if (text === null) return;
  let value;
  try { value = JSON.parse(text); } catch { value = text; }
  write('PATCH', `/model/${state.model}/${encodeURIComponent(item.id)}`, [{ op: 'replace', path: [name], value: [value] }]);
}

function write(method, path, body) {
  $('write-error').textContent = '';
  return call(method, path, body).catch(complain);
}

function complain(error) {
  $('write-error').textContent = error.message;
}

function note(frame) {
  const item = document.createElement('li');
  const name = document.createElement('b');
  name.textContent = frame.event;
  const { event, ...rest } = frame;
  item.append(name, ` ${JSON.stringify(rest)}`);
  $('frames').prepend(item);
  while ($('frames').children.length > 100) $('frames').lastChild.remove();
}

function show(kind, text) {
  $('status').className = `status ${kind}`;
  $('status').textContent = text;
}

function leave(why) {
  const socket = state.socket;
  Object.assign(state, { socket: null, subscription: null, offset: null, documents: new Map() });
  socket?.close();
  $('live').hidden = true;
  $('leave').hidden = true;
  $('sign-in').hidden = false;
  show('', 'not connected');
  $('sign-in-error').textContent = why || '';
}

// ── Start ───────────────────────────────────────────────────────────────────────────────────────────────────────────
$('sign-in').onsubmit = async (event) => {
  event.preventDefault();
  const form = Object.fromEntries(new FormData($('sign-in')));
  try {
    await signIn(form);
    $('sign-in-error').textContent = '';
    $('sign-in').hidden = true;
    $('live').hidden = false;
    $('leave').hidden = false;
    $('model-name').textContent = state.model;
    connect();
  } catch (error) {
    $('sign-in-error').textContent = error.message;
  }
};
$('filter-form').onsubmit = (event) => { event.preventDefault(); $('write-error').textContent = ''; subscribe().catch(complain); };
$('create').onsubmit = (event) => {
  event.preventDefault();
  $('write-error').textContent = '';
  try { write('POST', `/model/${state.model}`, parsed('the new document', $('create').fields.value)); } catch (error) { complain(error); }
};
$('leave').onclick = () => leave();

// `/#app=tasks&model=task&user=anna&password=…` signs in at once: the demo prints such links.
const preset = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
for (const [name, value] of Object.entries(preset)) if ($('sign-in').elements[name]) $('sign-in').elements[name].value = value;
$('create').fields.value = preset.example || '{"title":"hello"}';
if (preset.app && preset.model) $('sign-in').requestSubmit();
