"""
Rows to train on: read, checked whole before training starts, and made into batches.

`sources` reads files and datasets, `rows` makes an [`Example`] of each row and checks them all, `collator` makes
batches of examples, `video` takes frames out of videos, `taxonomy` knows the categories.

A row is a conversation about pictures or videos, with a verdict label, an answer or both:

    {"images": ["cat.png"], "messages": [{"role": "user", "content": "What is this?"},
                                         {"role": "assistant", "content": "A cat."}], "safety_label": "safe"}
    {"image": "cat.png", "query": "What is this?", "answer": "A cat.", "image_safe": true,
     "image_safety_label": "safe", "type": "...", "category": "...", "subcategory": "..."}

The first is JSONL's form, the second that of HoliSafe's files; a Hugging Face dataset may have either's columns. Rows
without a verdict label train the language model alone, rows without an answer the guard alone. null is as good as
absent; -100 in data is refused. Fields of other names are not read, and refused if they look like what the row lacks.

Beside the label of the whole, a row of several pictures may have one for each by itself, or null, in their order:

    {"images": ["a.png", "b.png"], "safety_label": "terrorism", "picture_categories": ["safe", "terrorism"], ...}
"""
