/* This file is a part of in_c, and has not called cattn_import(). */
#include <cattn.h>

int without_import(void);
const char *message_without_import(void);

int without_import(void)
{
    return cattn_attention(NULL);
}

const char *message_without_import(void)
{
    return cattn_message(CATTN_DONE);
}
