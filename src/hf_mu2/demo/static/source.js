// Hands a file or the name of a phantom to the server. The file gets a neutral name before it leaves the browser:
// names of CT files often are those of patients.
const drop = element.querySelector(".mu2-drop"), input = element.querySelector(".mu2-drop input");
const cases = element.querySelector(".mu2-cases"), status = element.querySelector(".mu2-status");
const series = element.querySelector(".mu2-series input");

function say(text, kind) {
  status.textContent = text;
  status.dataset.kind = kind || "";
}

async function send(file) {
  if (!file) return;
  const megabytes = props.value.upload_bytes / 2 ** 20;
  if (file.size > props.value.upload_bytes) {
    say(`An upload may have ${megabytes.toFixed(0)} MB, this file has ${(file.size / 2 ** 20).toFixed(0)} MB. Upload one series, compressed.`, "error");
    return;
  }
  const ending = (file.name.toLowerCase().match(/(\.nii\.gz|\.nii|\.zip|\.dcm)$/) || [".bin"])[0];
  say("Uploading the volume", "busy");
  try {
    const { path } = await upload(new File([file], "volume" + ending, { type: "application/octet-stream" }));
    say("Reading the volume", "busy");
    trigger("opened", { path, series: series.value });
  } catch (error) {
    say("The upload did not arrive. Check the connection and drop the file again.", "error");
  }
  input.value = "";
}

input.addEventListener("change", () => send(input.files[0]));
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.dataset.over = "yes"; });
}
for (const kind of ["dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); delete drop.dataset.over; });
}
drop.addEventListener("drop", (event) => send(event.dataTransfer.files[0]));
// A file dropped beside the target must not open in the tab.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());

for (const { name, title } of props.value.cases) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = title;
  button.dataset.case = name;
  button.addEventListener("click", () => { say("Making the phantom", "busy"); trigger("opened", { case: name }); });
  cases.append(button);
}
watch("value", () => say(props.value.status, props.value.kind));
