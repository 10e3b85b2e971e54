/* A file of in_c that has not called cattn_import(). */
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
