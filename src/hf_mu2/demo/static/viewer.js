// The viewer: NiiVue where it is installed and the browser has WebGL 2, else slices that the server draws.
// `element`, `props` and `watch` are gradio's; `props.value` is what `viewer_value` in page.py returns.
const find = (selector) => element.querySelector(selector);
const root = ((window.gradio_config && window.gradio_config.root) || "").replace(/\/$/, "");
const address = (name) => root + name;
const stage = find(".mu2-stage"), canvas = find(".mu2-canvas"), planes = find(".mu2-planes");
const presets = find(".mu2-segment"), heatBox = find(".mu2-heat");
const keySlices = find(".mu2-key-slices"), check = find(".mu2-check");
const heatOn = find(".mu2-heat-on"), heatOpacity = find(".mu2-heat-opacity");
const sliders = Object.fromEntries([...element.querySelectorAll(".mu2-sliders input")].map((s) => [s.dataset.plane, s]));
const AXIS = { sagittal: 0, coronal: 1, axial: 2 }; // of NIfTI voxels (x, y, z)
const LAYOUTS = {
  wide: [[0, [0, 0, 0.62, 1]], [1, [0.62, 0, 0.38, 0.5]], [2, [0.62, 0.5, 0.38, 0.5]]],
  narrow: [[0, [0, 0, 1, 0.62]], [1, [0, 0.62, 0.5, 0.38]], [2, [0.5, 0.62, 0.5, 0.38]]],
};
let shown = null, preset = "Lung", viewer = null, loading = 0;

const opacity = () => (heatOn.checked ? Number(heatOpacity.value) / 100 : 0);

function choosePreset(name) {
  preset = name;
  for (const button of presets.children) {
    const chosen = button.dataset.preset === name;
    button.setAttribute("aria-checked", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
}

function buildPresets(names) {
  if (presets.children.length) return;
  for (const name of names) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.dataset.preset = name;
    button.textContent = name;
    button.addEventListener("click", () => { choosePreset(name); draw(); });
    presets.append(button);
  }
  choosePreset(preset);
  presets.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const place = (names.indexOf(preset) + step + names.length) % names.length;
    choosePreset(names[place]);
    draw();
    presets.children[place].focus();
  });
}

function label(plane) {
  const slider = sliders[plane], facts = shown.planes[plane];
  const mm = Math.round(facts.first_mm + facts.step_mm * Number(slider.value));
  const text = `${Number(slider.value) + 1} / ${facts.count}`;
  slider.nextElementSibling.textContent = text;
  slider.setAttribute("aria-valuetext", `slice ${text}, ${mm} mm`);
}

// --- slices drawn by the server -------------------------------------------------------------------------------------
const waiting = {};
function drawPlane(plane) {
  const image = planes.querySelector(`[data-plane=${plane}]`);
  const query = new URLSearchParams({
    plane, index: sliders[plane].value, preset, v: shown.revision,
    opacity: shown.heat ? opacity() : 0,
  });
  const source = address(`/files/${shown.key}/slice.png?${query}`);
  if (waiting[plane]) { waiting[plane] = source; return; } // only the latest is worth drawing
  waiting[plane] = source;
  image.onload = image.onerror = () => {
    const next = waiting[plane];
    waiting[plane] = null;
    image.hidden = false;
    if (next !== image.dataset.source) drawPlane(plane);
  };
  image.dataset.source = source;
  image.alt = `${plane} slice ${Number(sliders[plane].value) + 1}`;
  image.src = source;
}

function draw(only) {
  if (!shown || !shown.planes) return;
  if (viewer) {
    drawVolume();
  } else if (!shown.has_niivue) { // else NiiVue is starting, and draws when it has
    for (const plane of only ? [only] : Object.keys(AXIS)) drawPlane(plane);
  }
}

// --- NiiVue ---------------------------------------------------------------------------------------------------------
function layOut() {
  if (!viewer) return;
  const layout = LAYOUTS[stage.clientWidth < 520 ? "narrow" : "wide"];
  viewer.setCustomLayout(layout.map(([sliceType, position]) => ({ sliceType, position })));
}

function drawVolume() {
  if (!viewer.volumes.length) return;
  const [level, width] = shown.presets[preset];
  const [ct, heat] = viewer.volumes;
  const changed = ct.cal_min !== level - width / 2 || ct.cal_max !== level + width / 2;
  ct.cal_min = level - width / 2;
  ct.cal_max = level + width / 2;
  if (heat && heat.opacity !== opacity()) viewer.setOpacity(1, opacity());
  if (changed) viewer.updateGLVolume();
  for (const [plane, axis] of Object.entries(AXIS)) {
    viewer.scene.crosshairPos[axis] = (Number(sliders[plane].value) + 0.5) / shown.planes[plane].count;
  }
  viewer.drawScene();
}

function follow(location) {
  if (!shown || !shown.planes) return;
  for (const [plane, axis] of Object.entries(AXIS)) {
    const { count } = shown.planes[plane];
    sliders[plane].value = Math.min(count - 1, Math.max(0, Math.round(viewer.scene.crosshairPos[axis] * count - 0.5)));
    label(plane);
  }
}

async function startNiivue() {
  const { Niivue } = window.niivue;
  const started = new Niivue({
    isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, loadingText: "",
    backColor: [0.02, 0.025, 0.03, 1], crosshairColor: [0.25, 0.75, 0.8, 0.55], crosshairWidth: 0.6,
    fontColor: [0.75, 0.8, 0.85, 1], viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    scrollRequiresFocus: true, logLevel: "silent",
  });
  await started.attachToCanvas(canvas);
  started.addColormap("mu2", { R: [200, 245, 255, 255], G: [20, 70, 170, 245], B: [30, 20, 30, 170], A: [0, 160, 220, 255], I: [0, 90, 170, 255] });
  started.onLocationChange = follow;
  return started;
}

function hasWebGL() {
  return Boolean(document.createElement("canvas").getContext("webgl2"));
}

async function loadVolume() {
  const ticket = ++loading;
  find(".mu2-busy").hidden = false;
  try {
    if (!viewer) {
      viewer = await startNiivue();
    }
    layOut();
    const volumes = [{ url: address(`/files/${shown.key}/volume.nii.gz?v=${shown.study}`), name: "volume.nii.gz" }];
    if (shown.heat) {
      volumes.push({
        url: address(`/files/${shown.key}/heat.nii.gz?v=${shown.revision}`), name: "heat.nii.gz",
        colormap: "mu2", opacity: opacity(), cal_min: 0, cal_max: 255,
      });
    }
    const wanted = shown.study;
    if (canvas.dataset.study === wanted && viewer.volumes.length) { // the same CT under another map
      while (viewer.volumes.length > 1) viewer.removeVolumeByIndex(1);
      if (shown.heat) await viewer.addVolumeFromUrl(volumes[1]);
    } else {
      await viewer.loadVolumes(volumes);
      canvas.dataset.study = wanted;
    }
  } catch (error) { // no WebGL after all, or no memory: the server draws
    console.warn("NiiVue could not show the volume, the server draws the slices.", error);
    viewer = null;
    canvas.hidden = true;
    planes.hidden = false;
    shown.has_niivue = false;
  }
  if (viewer && viewer.volumes.length > 1) {
    const { id } = viewer.volumes[1];
    viewer.setModulationImage(id, id, 1); // the less heat, the more of the CT shows through
  }
  if (ticket === loading) {
    find(".mu2-busy").hidden = true;
    element.firstElementChild.dataset.ready = `${shown.revision}`;
    draw();
  }
}

// --- both -----------------------------------------------------------------------------------------------------------
function show() {
  const value = props.value, isNew = !shown || shown.study !== value.study;
  shown = value;
  buildPresets(Object.keys(value.presets));
  const hasStudy = Boolean(value.planes);
  find(".mu2-empty").hidden = hasStudy;
  find(".mu2-sliders").hidden = !hasStudy;
  find(".mu2-caption").textContent = value.caption;
  heatBox.hidden = !value.heat;
  check.textContent = value.heat && value.heat.check ? `Check of this map: ${value.heat.check}.` : "";
  check.dataset.confirmed = String(Boolean(value.heat && value.heat.is_confirmed));
  keySlices.replaceChildren(...(value.heat ? value.heat.slices : []).map((number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = number + 1;
    button.setAttribute("aria-label", `Go to axial slice ${number + 1}`);
    button.addEventListener("click", () => { sliders.axial.value = number; sliders.axial.dispatchEvent(new Event("input")); });
    return button;
  }));
  if (!hasStudy) {
    canvas.hidden = true;
    for (const image of planes.querySelectorAll("img")) image.hidden = true;
    return;
  }
  for (const [plane, slider] of Object.entries(sliders)) {
    const { count } = value.planes[plane];
    slider.max = count - 1;
    if (value.focus) slider.value = value.focus[plane];
    else if (isNew) slider.value = Math.floor(count / 2);
    label(plane);
  }
  if (value.focus && value.heat && value.heat.preset) choosePreset(value.heat.preset);
  value.has_niivue = Boolean(value.has_niivue && window.niivue && hasWebGL());
  planes.hidden = value.has_niivue;
  if (value.has_niivue) {
    canvas.hidden = false;
    loadVolume();
  } else {
    element.firstElementChild.dataset.ready = `${value.revision}`;
    draw();
  }
}

for (const [plane, slider] of Object.entries(sliders)) {
  slider.addEventListener("input", () => { label(plane); draw(plane); });
}
heatOn.addEventListener("change", () => draw());
heatOpacity.addEventListener("input", () => draw());
planes.addEventListener("wheel", (event) => { // wheel over a slice: the next one
  const slider = sliders[event.target.dataset.plane];
  if (!slider) return;
  event.preventDefault();
  slider.value = Number(slider.value) + (event.deltaY < 0 ? 1 : -1);
  slider.dispatchEvent(new Event("input"));
}, { passive: false });
planes.addEventListener("click", (event) => { // a click: the other planes go there
  const image = event.target, plane = image.dataset.plane;
  if (!plane || !shown) return;
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const along = (at, start, size, natural) => (at - start - (size - natural * scale) / 2) / (natural * scale);
  const x = 1 - along(event.clientX, box.left, box.width, image.naturalWidth);
  const y = 1 - along(event.clientY, box.top, box.height, image.naturalHeight);
  if (Math.min(x, y) < 0 || Math.max(x, y) > 1) return;
  const go = { axial: ["sagittal", "coronal"], coronal: ["sagittal", "axial"], sagittal: ["coronal", "axial"] }[plane];
  [x, y].forEach((share, i) => {
    const slider = sliders[go[i]];
    slider.value = Math.floor(share * shown.planes[go[i]].count);
    slider.dispatchEvent(new Event("input"));
  });
});
new ResizeObserver(() => { layOut(); if (viewer) viewer.resizeListener(); }).observe(stage);
watch("value", show);
show();
