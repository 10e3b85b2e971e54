"""Recipes of fuzz.py: of calls that once went wrong, and of some that reach what few calls reach."""

RECIPES = """
# more numbers than any memory holds
self_attention 54 huge:w_value:400
# a word in the place of an array
attention 24 integers:query_offset:738
# half types near 0
merge_attention 13 numbers:outputs[0]:265
# slopes that no other generator of flash_attn's arguments draws
flash_attn.flash_attn_func 33 foreign:alibi_slopes:273
flash_attn.flash_attn_varlen_func 1 foreign:alibi_slopes:78
# integers of more digits than Python prints
plan 0 window:window:14
attention_weights 8 window:window:489
self_attention 39 count:num_kv_heads:691
KVCache 29 count:batch:82
KVCache 49 count:num_kv_heads:997
KVCache 43 count:head_size:911
quantize 27 count:axis:535
# a window longer than any memory
KVCache 48 count:window:610
# numbers without end, for a function that reads them all
quantize 4 huge:x:1
# a length in an array, for a query without an axis for queries
maxsim 10 shaped:query:86
# NumPy's MemoryError, which other text cannot be put into
attention_paged 43 liar:query:276
# a name whose own methods fail
KVCache 35 raising:dtype:717
# int8 arrays and scales that do not belong together, or that do
attention 4 typed:value:10
attention 4 none:key_scale:1
attention 4 typed:query:15
attention 0 typed:key:86
attention 0 scaled:key_scale:0
attention_paged 4 scaled:key_scale:4
attention_paged 10 scaled:value_scale:8
attention_varlen 4 scaled:key_scale:3
# objects that could not be shown
pad 6 foreign:length:871
plan 10 foreign:softcap:195
attention 1 foreign:scale:238
attention 7 foreign:softcap:753
attention 6 foreign:softcap:389
attention 2 foreign:layout:682
attention_varlen 3 foreign:scale:870
attention_weights 9 foreign:stage:641
attention 7 liar:return_lse:52
attention 4 liar:causal:324
attention 12 liar:query_lengths:132
attention 12 liar:scale:560
# objects that are not what they say
attention 12 liar:causal:229
flash_attn.flash_attn_varlen_func 14 liar:return_lse:195
attention 11 liar:return_lse:742
unpad 15 liar:x:59
pad 18 liar:packed:905
attention 3 liar:key:199
trace 12 liar:w_key:26
self_attention 14 liar:bias:352
attention 18 liar:window:272
plan 14 liar:window:857
attention 11 liar:key_range:187
attention_weights 16 liar:key_range:659
attention 12 liar:key_range:346
flash_attn.flash_attn_func 6 raising:causal:215
# a flag for a number
flash_attn.flash_attn_varlen_func 33 count:max_seqlen_k:766
# as many axes as an array can have
self_attention 18 shaped:x:591
# results in memory that they must not go to
attention 3 overlap:out:86
attention 9 overlap:out:2
attention_varlen 20 overlap:out:667
plan 3 overlap:out:5
# calls that Python refuses
attention 1 extra:-:239
attention 3 misspelt:-:5
merge_attention 2 missing:-:3
attention_weights 4 positional:-:7
"""


def recipes():
    return [line for line in RECIPES.splitlines() if line and not line.startswith("#")]
