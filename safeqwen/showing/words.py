"""Numbers and what they count, in words."""


def counted(number, noun):
    """Returns "1 picture", "0 pictures", "1,200 pictures" (`str`)."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
