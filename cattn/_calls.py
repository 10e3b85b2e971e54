"""Explain calls that give names or numbers of arguments which their function does not take."""

import functools
import inspect
import re

# The names that other libraries give to arguments: the name here, or None if there is none, and what to write.
_ELSEWHERE = {
    "is_causal": ("causal", 'write causal=, with query_offset="start" where the lengths differ'),
    "attn_mask": ("mask", "write mask= for booleans (True: may attend), bias= for what is added to the scores"),
    "enable_gqa": (None, "leave it out: fewer heads of key and value than of query need no flag"),
    "dropout_p": (None, "leave it out: there is no dropout"),
}


def explain_call(function, positional, names):
    """Return what is wrong with a call that gave so many arguments by position and these by name.

    The result is None if the function's parameters do not show anything wrong.
    """
    parameters = inspect.signature(function).parameters
    title = function.__name__
    for name in names:
        if name not in parameters:
            there, advice = _ELSEWHERE.get(name, (name, ""))
            if there is not None and there not in parameters:
                advice = f"expected one of {', '.join(parameters)}"
            return f"{name}: not an argument of {title}; {advice}"
    first = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if positional > len(first):
        return (
            f"{title}: expected at most {len(first)} arguments by position ({', '.join(first)}), got {positional}; "
            "give all others by name, such as scale="
        )
    by_position = first[:positional]
    for name in names:
        if name in by_position:
            return f"{name}: expected one argument, got two, by position and by name"
    needed = [name for name in first if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in needed if name not in by_position and name not in names]
    if missing:
        return f"{', '.join(missing)}: expected an argument, got none; {title} needs {', '.join(needed)}"
    return None


def explained(function):
    """Wrap a function so that calls with wrong names or too many arguments are refused with advice."""
    names = frozenset(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*given, **named):
        if not names.issuperset(named):  # a function with ** would begin its work before the name is refused
            raise TypeError(explain_call(function, len(given), named))
        try:
            return function(*given, **named)
        except TypeError:
            message = explain_call(function, len(given), named)
            if message is None:
                raise
            raise TypeError(message) from None

    return call


def forwarding(target, *, without):
    """Return a decorator for a function that passes its `**` on to `target`.

    Its signature shows the keyword arguments of `target` one by one, in the order and with the defaults of `target`,
    except those in `without`. `explained` refuses all other names.
    """

    def decorate(function):
        own = inspect.signature(function).parameters
        passed = {
            name: own.get(name, parameter)
            for name, parameter in inspect.signature(target).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in without
        }
        first = [p for name, p in own.items() if name not in passed and p.kind is not p.VAR_KEYWORD]
        function.__signature__ = inspect.Signature([*first, *passed.values()])
        return function

    return decorate


def raised_here(error):
    """Return whether cattn, or a library that it calls, raised the error. Otherwise a signal handler did, which ran in
    the middle of a call: such an error says nothing about arguments, and is for the caller as it is."""
    frame, trace = None, error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    return frame is None or frame.f_globals.get("__name__", "").partition(".")[0] in ("cattn", "numpy", "torch")


def renamed(error, words):
    """Return the same error for a caller who knows other names: whole words and what stands in their place. Raise the
    error itself if it was not raised here."""
    if not raised_here(error):
        raise error
    pattern = "|".join(re.escape(word) for word in words)
    kind = MemoryError if isinstance(error, MemoryError) else type(error)  # NumPy's own takes other arguments
    return kind(re.sub(rf"(?<!\w)({pattern})(?!\w)", lambda found: words[found[0]], str(error)))
