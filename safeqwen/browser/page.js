() => {
  // Runs once when the page is there: pictures can be pasted anywhere, and what appears is read aloud.
  for (const [id, name] of [["verdicts", "Verdict"], ["conversation", "Conversation"]]) {
    const region = document.getElementById(id);
    region?.setAttribute("role", "region");
    region?.setAttribute("aria-live", "polite");
    region?.setAttribute("aria-label", name);
  }
  document.addEventListener("paste", (event) => {
    const pictures = [...(event.clipboardData?.files ?? [])];
    const input = document.querySelector("#pictures input[type=file]");
    if (!pictures.length || !input) return; // text goes where it is pasted
    event.preventDefault();
    const transfer = new DataTransfer();
    pictures.forEach((picture) => transfer.items.add(picture));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}
