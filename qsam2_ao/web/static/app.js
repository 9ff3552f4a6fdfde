"use strict";
/* The page's state is here alone: prompts by frame and object. The server knows pictures, clips and masks. */

const $ = (id) => document.getElementById(id);
const state = {
  about: null, clip: null, frame: 0, object: 1, objects: 1,
  prompts: {},          // frame -> object -> {points: [[x, y]], labels: [1], box: null}
  history: [],          // [frame, object, what] for undo
  tracking: null, stale: true, panels: [], picture: null, asked: 0, wanted: null,
};

async function call(path, options = {}) {
  const response = await fetch(path, options);
  if (!response.ok) {
    let reason = `the server answered ${response.status}`;
    try { reason = (await response.json()).error || reason; } catch { /* no JSON: the number has to do */ }
    throw new Error(reason);
  }
  return response.status === 204 ? null : response.json();
}

function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

const fail = (error) => say(error.message, true);
const bytes = (n) => n < 2 ** 20 ? `${(n / 2 ** 10).toFixed(0)} KiB` : `${(n / 2 ** 20).toFixed(1)} MiB`;
const frames = (n) => `${n} frame${n === 1 ? "" : "s"}`;
const percent = (x) => `${(100 * x).toFixed(1)} %`;

function loadImage(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture did not arrive"));
    image.src = source;
  });
}

async function begin() {
  state.about = await call("/api/models");
  state.about.samples.forEach((name, number) => $("sample").add(new Option(name, number)));
  state.about.models.forEach((model, number) => {
    const panel = $("panel").content.cloneNode(true).firstElementChild;
    panel.querySelector("h2").textContent = model.label;
    panel.querySelector(".facts").textContent = `${model.kind}, ${bytes(model.file_bytes)}`;
    const canvas = panel.querySelector("canvas");
    canvas.setAttribute("aria-label", `masks of ${model.label}`);
    listen(canvas);
    $("models").append(panel);
    state.panels.push({ panel, canvas, number, overlay: null });
  });
  say("Open a picture or a clip, or choose a sample.");
}

async function open(path, options, what) {
  say(`opening ${what} ...`);
  try {
    const clip = await call(path, options);
    if (state.clip) call(`/api/clips/${state.clip.id}`, { method: "DELETE" }).catch(() => {});
    Object.assign(state, { clip, frame: 0, object: 1, objects: 1, prompts: {}, history: [], tracking: null, stale: true });
    const length = clip.frames < clip.stored_frames ? `the first ${clip.frames} of ${clip.stored_frames} frames` : frames(clip.frames);
    $("name").textContent = `${clip.name}, ${clip.width} x ${clip.height}${clip.picture ? "" : `, ${length}`}`;
    $("tools").hidden = false;
    $("timeline").hidden = clip.picture;
    $("frame").max = clip.frames - 1;
    $("frame").value = 0;
    $("progress").hidden = true;
    listObjects();
    for (const { panel } of state.panels) {
      panel.querySelector(".answer").textContent = "";
      panel.querySelector(".downloads").hidden = true;
    }
    say("Click on an object, or draw a box around it.");  // before what is clicked meanwhile answers
    await show(0);
  } catch (error) { fail(error); }
}

function listObjects() {
  $("object").replaceChildren(...Array.from({ length: state.objects }, (_, i) => new Option(i + 1, i + 1)));
  $("object").value = state.object;
}

/* Frames and masks */

async function show(frame) {
  state.frame = frame;
  state.wanted = frame;
  $("frame").value = frame;
  $("where").textContent = `frame ${frame} of ${state.clip.frames - 1}`;
  const clip = state.clip;
  const picture = await loadImage(`/api/clips/${clip.id}/frames/${frame}`);
  const row = state.tracking?.frames[frame];
  const overlays = row && !(frame in state.prompts && state.stale)
    ? await Promise.all(state.panels.map(({ number }) => loadImage(`/api/clips/${clip.id}/masks/${number}/${frame}`)))
    : state.panels.map(() => null);
  if (state.wanted !== frame || state.clip !== clip) return;
  state.picture = picture;
  state.panels.forEach((panel, i) => {
    panel.overlay = overlays[i];
    if (row) tell(panel, `${row[i].ms.toFixed(0)} ms a frame`, row[i].iou, null);
    else if (!clip.picture) panel.panel.querySelector(".answer").textContent = "";
  });
  draw();
  if (!row && state.prompts[frame]) await segment();
}

function tell({ panel, number }, time, iou, score) {
  const parts = [time];
  if (iou !== null) parts.push(number ? `IoU with ${state.about.models[0].label} ${percent(iou)}` : "the reference");
  if (score !== null) parts.push(`own score ${score.toFixed(2)}`);
  panel.querySelector(".answer").textContent = parts.join(" · ");
}

function draw(box = null) {
  for (const { canvas, overlay } of state.panels) {
    canvas.width = state.clip.width;
    canvas.height = state.clip.height;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
    if (overlay) pen.drawImage(overlay, 0, 0, canvas.width, canvas.height);
    const unit = canvas.width / (canvas.clientWidth || canvas.width);
    pen.lineWidth = 1.5 * unit;
    for (const said of Object.values(state.prompts[state.frame] || {})) {
      said.points.forEach(([x, y], i) => {
        pen.beginPath();
        pen.arc(x, y, 5 * unit, 0, 7);
        pen.fillStyle = said.labels[i] ? "#00e676" : "#ff1744";
        pen.strokeStyle = "#fff";
        pen.fill();
        pen.stroke();
      });
      if (said.box) frameBox(pen, said.box);
    }
    if (box) frameBox(pen, box);
  }
}

function frameBox(pen, [x0, y0, x1, y1]) {
  const width = pen.lineWidth;
  for (const [colour, wide] of [["#000a", 2.5], ["#fff", 1]]) {  // seen on dark and on bright pictures
    pen.strokeStyle = colour;
    pen.lineWidth = wide * width;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  pen.lineWidth = width;
}

/* Prompts */

function said(frame = state.frame, object = state.object) {
  state.prompts[frame] ??= {};
  return state.prompts[frame][object] ??= { points: [], labels: [], box: null };
}

function place(canvas, event) {
  const area = canvas.getBoundingClientRect();
  const inside = (value, most) => Math.min(Math.max(value, 0), most - 1);
  return [
    inside((event.clientX - area.left) / area.width * canvas.width, canvas.width),
    inside((event.clientY - area.top) / area.height * canvas.height, canvas.height),
  ];
}

function listen(canvas) {
  let start = null;
  const tool = () => document.querySelector("input[name=tool]:checked").value;
  const corners = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.clip || event.button) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    start = place(canvas, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start && tool() === "box") draw(corners(start, place(canvas, event)));
  });
  canvas.addEventListener("pointercancel", () => { start = null; });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const from = start, to = place(canvas, event);
    start = null;
    if (tool() === "box") {
      const box = corners(from, to);
      if (box[2] - box[0] < 2 || box[3] - box[1] < 2) { draw(); return; }
      const before = said().box;
      said().box = box;
      state.history.push([state.frame, state.object, { box: before }]);
    } else {
      said().points.push(to);
      said().labels.push(tool() === "inside" ? 1 : 0);
      state.history.push([state.frame, state.object, "point"]);
    }
    changed();
  });
}

function changed() {
  for (const [frame, objects] of Object.entries(state.prompts)) {
    for (const [object, { points, box }] of Object.entries(objects)) {
      if (!points.length && !box) delete objects[object];
    }
    if (!Object.keys(objects).length) delete state.prompts[frame];
  }
  state.stale = true;
  draw();
  segment().catch(fail);
}

function asItems(frames, asFirst) {
  return frames.flatMap((frame) => Object.entries(state.prompts[frame] || {}).map(([object, prompt]) => ({
    frame: asFirst ? 0 : Number(frame),
    object: Number(object),
    ...(prompt.points.length ? { points: prompt.points, labels: prompt.labels } : {}),
    ...(prompt.box ? { box: prompt.box } : {}),
  })));
}

async function segment() {
  const { clip, frame } = state, turn = ++state.asked;
  const prompts = asItems([frame], true);
  if (!prompts.length) {
    state.panels.forEach((panel) => {
      panel.overlay = null;
      panel.panel.querySelector(".answer").textContent = "";
      if (clip.picture) panel.panel.querySelector(".downloads").hidden = true;
    });
    draw();
    return;
  }
  say("segmenting ...");
  const question = JSON.stringify({ frame, prompts });
  const { answers } = await call(`/api/clips/${clip.id}/segment`, { method: "POST", body: question });
  const overlays = await Promise.all(answers.map((answer) => loadImage(answer.overlay)));
  if (turn !== state.asked || state.clip !== clip || state.frame !== frame) return;
  answers.forEach((answer, i) => {
    const panel = state.panels[i], mean = (key) => answer.objects.reduce((sum, o) => sum + o[key], 0) / answer.objects.length;
    panel.overlay = overlays[i];
    tell(panel, `${answer.ms.toFixed(0)} ms`, mean("iou"), mean("score"));
    if (clip.picture) offer(panel);
  });
  draw();
  if (clip.picture) say("Click again to correct, or take the masks along.");
  else if (state.tracking) say("These are the masks of this frame's clicks alone; Track joins them to what was tracked before.");
  else say("Track follows the objects through the clip.");
}

function offer({ panel, number }) {
  panel.querySelector(".downloads").hidden = false;
  for (const link of panel.querySelectorAll(".downloads a")) {
    link.href = `/api/clips/${state.clip.id}/download/${number}/${link.dataset.form}`;
    link.download = "";
  }
}

async function track() {
  const clip = state.clip, prompts = asItems(Object.keys(state.prompts), false);
  if (!prompts.length) { say("Click on an object first.", true); return; }
  $("track").disabled = true;
  $("progress").hidden = false;
  try {
    state.tracking = await call(`/api/clips/${clip.id}/track`, { method: "POST", body: JSON.stringify({ prompts }) });
    state.stale = false;
    say(`tracking ${frames(state.tracking.total)} ...`);
    while (state.clip === clip) {
      const found = await call(`/api/clips/${clip.id}/track`);
      if (found.error) throw new Error(found.error);
      state.tracking = found;
      $("progress").max = found.total;
      $("progress").value = found.done;
      if (found.done < found.total) say(`tracking: ${found.done} of ${frames(found.total)}`);
      if (found.done >= found.total) break;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
    if (state.clip !== clip) return;
    state.panels.forEach(offer);
    await show(state.frame);
    say(summary());
  } catch (error) { fail(error); } finally {
    $("track").disabled = false;
    $("progress").hidden = true;
  }
}

function summary() {
  const rows = Object.values(state.tracking.frames);
  const worst = Object.entries(state.tracking.frames).reduce((least, [frame, row]) => {
    const iou = Math.min(...row.map((each) => each.iou ?? 1));
    return iou < least[1] ? [frame, iou] : least;
  }, [null, 1]);
  const means = state.about.models.map((model, i) => {
    const times = rows.map((row) => row[i].ms);
    return `${model.label} ${(times.reduce((a, b) => a + b, 0) / times.length).toFixed(0)} ms a frame`;
  });
  const where = worst[0] === null ? "" : `; they differ most on frame ${worst[0]} (IoU ${percent(worst[1])})`;
  return `tracked: ${means.join(", ")}${where}. Correct on any frame, and track again.`;
}

/* Controls */

$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (!file) return;
  if (file.size > state.about.max_upload) {
    say(`${file.name} has ${bytes(file.size)}, and at most ${bytes(state.about.max_upload)} can be opened`, true);
  } else {
    open(`/api/clips?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }, file.name);
  }
  event.target.value = "";
});
$("sample").addEventListener("change", (event) => {
  if (event.target.value !== "") open(`/api/samples/${event.target.value}`, { method: "POST" }, "the sample");
  event.target.value = "";
});
$("object").addEventListener("change", (event) => { state.object = Number(event.target.value); });
$("add").addEventListener("click", () => {
  if (state.objects < 254) state.object = ++state.objects;
  listObjects();
});
$("undo").addEventListener("click", () => {
  const last = state.history.pop();
  if (!last) return;
  const [frame, object, what] = last, prompt = said(frame, object);
  if (what === "point") { prompt.points.pop(); prompt.labels.pop(); } else { prompt.box = what.box; }
  changed();
});
$("clear").addEventListener("click", () => {
  Object.assign(state, { prompts: {}, history: [], object: 1, objects: 1, tracking: null });
  state.panels.forEach(({ panel }) => { panel.querySelector(".downloads").hidden = true; });
  listObjects();
  changed();
});
$("frame").addEventListener("input", (event) => show(Number(event.target.value)).catch(fail));
$("track").addEventListener("click", track);
window.addEventListener("resize", () => { if (state.clip && state.picture) draw(); });
begin().catch(fail);
