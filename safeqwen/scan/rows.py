"""
The rows of a scan: one a picture, in JSONL or Parquet, written when the scan has ended and never before.

A file of rows that is there is whole: it is put in its place in one step, and holds exactly one row for each place
where the sources had a picture, in the order of the sources. Every row has all fields, in this order:

    id                  str    where the picture is; unique in the file. A path as the source was given
                               ("pictures/a.png"), a URL, or a member of a file, after "::"
                               ("shard-0001.tar::000017.jpg", "a.zip::b/c.png", "rows.jsonl::12", "rows.jsonl::12::1"
                               for the second of line 12's pictures, "train.parquet::12"; lines and rows count from 1).
                               A path that is no UTF-8 is a file:// URI. [`safeqwen.scan.sources.read_place`] gives
                               the bytes of any id that is a path, URL or file:// URI, or a member.
    label               str    the likeliest category of the view that counts; null if there is an error
    score               float  its probability in [0, 1]; null if there is an error
    unsafe              float  1 - p(safe) in [0, 1]; null if there is an error, or no category is named "safe"
    scores              dict   category -> the model's own probability (not calibrated), in the model's order, of the
                               view that counts; null if there is an error
    views               list   of a picture with several views `{"frame": int, "scores": dict}` each; else null.
                               `frame` counts the frames of an animation; a frame has two views if it looks different
                               on white and on black paper
    frames              int    how many frames were judged (at most 8 of an animation); null if there is an error
    decision            dict   `Decision.to_dict()` of the policy; null without a policy, or if there is an error
    error               str    why there is no verdict; null if there is one. A row has a verdict or an error
    width, height       int    pixels of the first view; null if the picture could not be decoded
    num_bytes           int    of the file; null if it could not be read
    seconds             float  the model's time; of pictures that are judged together each has its share. Copies of one
                               picture have the same: it was judged once
    judged_at           str    when, "2026-11-26T19:30:00+00:00"; null if there is an error
    picture_sha256      str    of the file's bytes; rows of the same picture share it; null if it could not be read
    perceptual_hash     str    64 hexadecimal digits: ImageHash's phash of 16 x 16 of the first view. Null of
                               animations, of pictures of one colour, and if there is an error
    group               int    number of the group of near-identical pictures that this one is in, from 1; copies
                               (the same picture_sha256) are near-identical, too. Null for a picture without another
    group_disagrees     bool   whether the verdicts of the group differ: the decision's `would_action`, or without a
                               policy whether `unsafe` is 0.5 or more. Null where `group` is null
    model_fingerprint   str    of the weights ([`safeqwen.fingerprint.weights_fingerprint`])
    policy_fingerprint  str    sha256 of the policy's JSON; null without one

`read_rows` reads both kinds. Beside ROWS lies ROWS.ledger, from which the file was written (see `ledger`): further
scans of the same sources go by it, and read_record gives what the scan was of (model, policy, sources, settings).
"""
