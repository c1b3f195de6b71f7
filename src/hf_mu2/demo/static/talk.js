// Sentences are buttons inside running text: click, Enter and Space choose one. Suggestions ask.
function choose(target) {
  const sentence = target.closest(".mu2-sentence"), suggestion = target.closest(".mu2-suggestion");
  if (sentence) {
    trigger("sentence", {
      turn: Number(sentence.dataset.turn), reply: Number(sentence.dataset.reply), sentence: Number(sentence.dataset.sentence),
    });
  } else if (suggestion) {
    trigger("suggestion", { question: suggestion.dataset.question });
  }
}
element.addEventListener("click", (event) => choose(event.target));
element.addEventListener("keydown", (event) => {
  if ((event.key === "Enter" || event.key === " ") && event.target.matches(".mu2-sentence")) {
    event.preventDefault();
    choose(event.target);
  }
});
watch("value", () => { // follow an answer while it grows
  const caret = element.querySelector(".mu2-caret");
  const box = element.querySelector(".mu2-talk");
  if (caret && box) box.scrollTop = box.scrollHeight;
});
