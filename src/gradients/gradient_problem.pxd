# One call of attention_backward as data: the call of attention that it belongs to, and where the gradients go.

from problem cimport cattn_array, cattn_problem


cdef struct GradientProblem:
    cattn_problem forward        # its out and lse are read
    cattn_array grad_out         # like out
    cattn_array grad_lse         # like lse; NULL: nothing depends on lse
    cattn_array query, key, value   # the gradients of those
    cattn_array bias             # has the stride 0 where the bias was broadcast; NULL: nobody asks for it
    double *slopes               # [entry][query head]; NULL: there are none
    double *sinks
