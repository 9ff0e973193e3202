/*
 * The benchmark's noise floor: a ClientAuthentication hook that does nothing.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

PG_MODULE_MAGIC;

/* As in libpq/auth.h, which asks for headers of libraries that a machine need not have. */
typedef struct Port Port;
typedef void (*ClientAuthentication_hook_type) (Port *, int);
extern PGDLLIMPORT ClientAuthentication_hook_type ClientAuthentication_hook;

static ClientAuthentication_hook_type previous = NULL;

static void
noop(Port *port, int status)
{
	if (previous)
		previous(port, status);
}

void		_PG_init(void);

void
_PG_init(void)
{
	if (process_shared_preload_libraries_in_progress)
	{
		previous = ClientAuthentication_hook;
		ClientAuthentication_hook = noop;
	}
}
