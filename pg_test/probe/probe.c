/*
 * A library of the tests' own: another ClientAuthentication hook, and a backend that vanishes without a trace.
 */
#include "postgres.h"

#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"

PG_MODULE_MAGIC;

/* As in libpq/auth.h, which asks for headers of libraries that a machine need not have. */
typedef struct Port Port;
typedef void (*ClientAuthentication_hook_type) (Port *, int);
extern PGDLLIMPORT ClientAuthentication_hook_type ClientAuthentication_hook;

static ClientAuthentication_hook_type previous = NULL;

/* Says that it was called, after whoever came before it. */
static void
probe(Port *port, int status)
{
	if (previous)
		previous(port, status);
	ereport(LOG, errmsg("probe: status %d", status));
}

void		_PG_init(void);

void
_PG_init(void)
{
	if (process_shared_preload_libraries_in_progress)
	{
		previous = ClientAuthentication_hook;
		ClientAuthentication_hook = probe;
	}
}

static void
leave(int code, Datum arg)
{
	_exit(0);
}

PG_FUNCTION_INFO_V1(probe_vanish);

/*
 * At its end this backend leaves the process array as usual, but then runs no exit callback that was registered before:
 * its slot stays claimed, and the server does not take it for a crash.
 */
Datum
probe_vanish(PG_FUNCTION_ARGS)
{
	on_proc_exit(leave, (Datum) 0);
	PG_RETURN_VOID();
}
