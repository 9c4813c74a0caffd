"""The page: its components, and what happens when they are used."""

from functools import partial

import gradio as gr

from safeqwen.browser import page
from safeqwen.browser.uploads import read_once
from safeqwen.browser.visit import MAX_PICTURES, MAX_QUESTION, Judge, Visit
from safeqwen.data.taxonomy import title_of
from safeqwen.judging.verdict import NO_PICTURE, SAFE


ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private"}  # not for gradio_client
TOO_MANY = f"a visit has room for {MAX_PICTURES} pictures, those with questions included; start over for more"
FORGET_AFTER_S = 3600  # what a visitor had, if the page stays open and nothing happens


def build(model, processor, *, is_demo=False, model_name="", is_shared=False, max_new_tokens=256):
    """
    Returns the page (`gradio.Blocks`), ready for `launch`.

    Args:
        model ([`SafeQwen2_5_VLForConditionalGeneration`]), processor: as [`safeqwen.load`] returns them.
        is_demo (`bool`): whether to say that the model knows drawings only.
        model_name (`str`): for people.
        is_shared (`bool`): whether to say that pictures travel through Gradio's servers.
        max_new_tokens (`int`): of an answer.

    Raises:
        RuntimeError: if the model may not judge: its guard is untrained.
    """
    if reason := model.refusal():
        raise RuntimeError(reason)
    judge = Judge(model, processor, max_new_tokens)
    with gr.Blocks(title="SafeQwen", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        visit = gr.State(Visit(), time_to_live=FORGET_AFTER_S)
        gr.HTML(page.about(is_demo, model_name, is_shared))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                sources = _sources()
            with gr.Column(scale=3, min_width=300):
                shown = _shown(judge.categories)
        _connect_pictures(judge, visit, sources, shown)
        _connect_map(judge, visit, shown)
        _connect_conversation(judge, visit, shown)
        _add_endpoint(judge)
        blocks.load(None, js=page.SCRIPT, **PRIVATE)  # Gradio 6.17 passes over the `js` of `launch`
    return blocks


def _sources():
    """The components that pictures come in by."""
    gr.HTML("<h2>A picture</h2>", elem_classes="heading")
    files = read_once(
        gr.File(label="Drop, paste or choose pictures", file_count="multiple", elem_id="pictures", height=150)
    )
    with gr.Row():
        link = gr.Textbox(label="Or a link", placeholder="https://", elem_id="link", scale=4, max_lines=1)
        judge_link = gr.Button("Judge link", elem_id="judge-link", scale=1, min_width=110)
    with gr.Accordion("Take a photograph", open=False):
        photograph = read_once(gr.Image(sources=["webcam"], show_label=False, elem_id="photograph", buttons=[]))
    gr.HTML("<h2>Or an example, drawn for this page</h2>", elem_classes="heading")
    with gr.Row(elem_id="examples"):
        examples = [
            (gr.Button(words, elem_id=f"example-{i}", elem_classes="example", min_width=60), name)
            for i, (name, words) in enumerate(page.EXAMPLES.items())
        ]
    return {"files": files, "link": link, "judge_link": judge_link, "photograph": photograph, "examples": examples}


def _shown(categories):
    """The components that show what came of the pictures, by name."""
    titles = [(title_of(category), category) for category in categories]
    gr.HTML("<h2>Verdict</h2>", elem_classes="heading")
    verdicts = gr.HTML(page.verdicts_html([]), elem_id="verdicts")
    with gr.Column(visible=False, elem_id="map-part") as map_part:
        gr.HTML("<h2>Where it comes from</h2>", elem_classes="heading")
        picture = gr.Dropdown([], label="Picture", elem_id="picture", visible=False)
        with gr.Row():
            category = gr.Dropdown(titles, label="Category", elem_id="category", value=None)
            opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity of the map", elem_id="opacity", buttons=[])
        reveal = gr.Checkbox(False, label="Show flagged pictures as they are", elem_id="reveal")
        heatmap = gr.HTML(elem_id="heatmap")
    gr.HTML("<h2>Questions</h2>", elem_classes="heading")
    conversation = gr.HTML(page.conversation_html([]), elem_id="conversation")
    question = gr.Textbox(
        label="Ask about the picture, or anything", elem_id="question", lines=1, max_lines=6, max_length=MAX_QUESTION
    )
    stop = gr.Checkbox(False, label="No answer about flagged pictures", elem_id="stop")
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=90)
        anew = gr.Button("Start over", elem_id="anew", min_width=90)
    return {
        "verdicts": verdicts,
        "map_part": map_part,
        "picture": picture,
        "category": category,
        "opacity": opacity,
        "reveal": reveal,
        "heatmap": heatmap,
        "conversation": conversation,
        "question": question,
        "stop": stop,
        "ask": ask,
        "anew": anew,
    }


def _connect_pictures(judge, visit, sources, shown):
    """What happens when a picture comes in, from wherever: its verdict is shown, then the map of the last one."""
    changed = ("verdicts", "map_part", "picture", "category", "heatmap")
    outputs = [visit, *(shown[name] for name in changed)]

    def handler(pictures_of):
        def judge_pictures(visit, opacity, reveal, *given):
            visit.make_room()
            verdicts = visit.verdicts
            for name, verdict_of in pictures_of(*given):
                verdict = verdict_of() if len(verdicts) < MAX_PICTURES else judge.refused(name, TOO_MANY)
                if visit.verdicts is not verdicts:  # the visitor started over meanwhile
                    break
                verdicts.append(verdict)
                yield visit, page.verdicts_html(verdicts), *[gr.skip()] * 4
            yield visit, page.verdicts_html(visit.verdicts), *_first_map(judge, visit, opacity, reveal)

        return judge_pictures

    def of_files(files):
        return [(name, partial(judge.verdict, data, name)) for data, name in files or []]

    def of_link(link):
        return [(link, partial(judge.linked, link))] if link.strip() else []

    def of_example(name):
        shown_as = f"{page.EXAMPLES[name]}.png"
        return lambda: [(shown_as, partial(judge.verdict, page.example_bytes(name), shown_as))]

    settings = [visit, shown["opacity"], shown["reveal"]]
    queued = {"outputs": outputs, "show_progress": "hidden", **ONE_AT_A_TIME, **PRIVATE}
    for listen, field in ((sources["files"].upload, "files"), (sources["photograph"].input, "photograph")):
        listen(handler(of_files), [*settings, sources[field]], **queued).then(
            lambda: None, outputs=sources[field], **PRIVATE
        )
    gr.on(
        [sources["link"].submit, sources["judge_link"].click],
        handler(of_link),
        [*settings, sources["link"]],
        **queued,
    )
    for button, name in sources["examples"]:
        button.click(handler(of_example(name)), settings, **queued)


def _first_map(judge, visit, opacity, reveal):
    """Updates of the map's components after pictures came in: the last one's likeliest harm."""
    judged = [i for i, verdict in enumerate(visit.verdicts) if verdict.error is None]
    if not judged:
        return gr.update(visible=False), gr.skip(), gr.skip(), ""
    verdict = visit.verdicts[judged[-1]]
    harms = {name: score for name, score in verdict.scores.items() if name != SAFE}
    category = max(harms or verdict.scores, key=(harms or verdict.scores).get)
    heatmap = page.map_html(verdict, judge.heatmap(visit, verdict, category), opacity, reveal)
    choices = [(f"{i + 1}: {visit.verdicts[i].name}", i) for i in judged]
    menu = gr.update(choices=choices, value=judged[-1], visible=len(judged) > 1)
    return gr.update(visible=True), menu, category, heatmap


def _connect_map(judge, visit, shown):
    """Menus and slider of the heat map. `input` is of a person's choice alone, not of what a handler sets."""

    def draw(visit, picture, category, opacity, reveal):
        if picture is None or picture >= len(visit.verdicts) or category is None:
            return ""
        verdict = visit.verdicts[picture]
        return page.map_html(verdict, judge.heatmap(visit, verdict, category), opacity, reveal)

    choice = [visit, *(shown[name] for name in ("picture", "category", "opacity", "reveal"))]
    changes = [shown["picture"].input, shown["category"].input, shown["opacity"].change, shown["reveal"].input]
    gr.on(
        changes,
        draw,
        choice,
        shown["heatmap"],
        show_progress="hidden",
        trigger_mode="always_last",
        **ONE_AT_A_TIME,
        **PRIVATE,
    )


def _connect_conversation(judge, visit, shown):
    def ask(visit, question, stop):
        if not question.strip():
            yield visit, gr.skip(), gr.skip()
            return
        for turn in judge.ask(visit, question, stop):
            yield visit, page.conversation_html(visit.turns, busy=not turn.is_refused), ""
        yield visit, page.conversation_html(visit.turns), gr.skip()

    def start_over(visit):
        visit.start_over()
        return visit, page.verdicts_html([]), gr.update(visible=False), "", page.conversation_html([])

    gr.on(
        [shown["ask"].click, shown["question"].submit],
        ask,
        [visit, shown["question"], shown["stop"]],
        [visit, shown["conversation"], shown["question"]],
        show_progress="hidden",
        **ONE_AT_A_TIME,
        **PRIVATE,
    )
    names = ("verdicts", "map_part", "heatmap", "conversation")
    shown["anew"].click(
        start_over, [visit], [visit, *(shown[name] for name in names)], show_progress="hidden", **PRIVATE
    )


def _add_endpoint(judge):
    """`judge`, the one endpoint for `gradio_client`."""

    def judge_one(file, question, stop_if_flagged):
        visit = Visit()
        for data, name in file or []:
            visit.verdicts.append(judge.verdict(data, name))
        turn = None
        if question.strip():
            *_, turn = judge.ask(visit, question, stop_if_flagged)
        verdict = visit.verdicts[0] if visit.verdicts else judge.refused("nothing", NO_PICTURE)
        answer = {"answer": None, "note": None} if turn is None else {"answer": turn.answer or None, "note": turn.note}
        return {**verdict.to_dict(), **answer, "note": answer["note"] or None}

    with gr.Column(visible=False):
        file = read_once(gr.File(label="file"))
        question = gr.Textbox("", label="question")
        stop = gr.Checkbox(False, label="stop_if_flagged")
        button, result = gr.Button("judge"), gr.JSON(label="verdict")
    button.click(judge_one, [file, question, stop], result, api_name="judge", **ONE_AT_A_TIME)
