"""Whether two runs generated the same, as far as rounding allows."""

from __future__ import annotations

from cases import Figures
from serving import Serving

__all__ = ["agree"]


def agree(got: Serving, wanted: Serving, margin: float) -> Figures:
    """AssertionError unless the greedy tokens are the same, each as likely within `margin`, up to
    one where another order of additions chose between two best tokens: as likely, too.

    got: its last requests are those of `wanted`. margin: of logprobs. What follows a tie is another
    text, so at least half of all tokens must lie before one.
    """
    compared, ties, worst, expected = 0, 0, 0.0, 0
    last = list(got.tokens)[-len(wanted.tokens) :]
    for request, same_request in zip(wanted.tokens, last, strict=True):
        ours, theirs = got.tokens[same_request][0], wanted.tokens[request][0]
        assert len(ours) == len(theirs), f"prompt {request}: {len(ours)} tokens of {len(theirs)}"
        logprobs = zip(got.logprobs[same_request][0], wanted.logprobs[request][0], strict=True)
        expected += len(theirs)
        for index, (our_logprob, their_logprob) in enumerate(logprobs):
            apart, differ = abs(our_logprob - their_logprob), ours[index] != theirs[index]
            # NaN never passes
            if not apart <= margin:
                what = "another token" if differ else "the same token"
                raise AssertionError(f"prompt {request}, output {index}: {what}, {apart:.1e} apart")
            worst, compared = max(worst, apart), compared + 1
            if differ:
                ties += 1
                break
    if compared < expected / 2:
        raise AssertionError(
            f"only {compared} of {expected} tokens before a tie: proves too little"
        )
    return {
        "tokens": compared,
        "prompts_that_ended_in_a_tie": ties,
        "worst_logprob_error": float(f"{worst:.1e}"),
    }
