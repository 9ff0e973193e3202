/*
 * A library of the tests' own, for LD_PRELOAD: it sets a server's wall clock, and stops a login at a certain point. What
 * it does is in the file that the environment names, so that it can change at any time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct stage
{
	/* By how much the wall clock is ahead, in seconds. */
	int64_t		ahead;
	/* Whether a login stops, as by SIGSTOP, before it looks at its sockets without waiting. */
	int64_t		stop_before_look;
};

static const volatile struct stage nothing;
static const volatile struct stage *stage = &nothing;

__attribute__((constructor)) static void
open_stage(void)
{
	const char *path = getenv("SESSION_LIMIT_STAGE");
	int			file = path ? open(path, O_RDONLY) : -1;
	void	   *map = MAP_FAILED;

	if (file >= 0)
		map = mmap(NULL, sizeof(struct stage), PROT_READ, MAP_SHARED, file, 0);
	if (map != MAP_FAILED)
		stage = map;
	if (file >= 0)
		close(file);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = syscall(SYS_clock_gettime, clock, now);

	if (clock == CLOCK_REALTIME)
		now->tv_sec += stage->ahead;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int			result = syscall(SYS_gettimeofday, now, zone);

	now->tv_sec += stage->ahead;
	return result;
}

time_t
time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}

/* As the title says. No other process may stop: the postmaster looks without waiting, too. */
static int
is_login(void)
{
	char		title[256] = "";
	int			file = open("/proc/self/cmdline", O_RDONLY);

	if (file >= 0)
	{
		if (read(file, title, sizeof(title) - 1) < 0)
			title[0] = '\0';
		close(file);
	}
	return strstr(title, "authentication") != NULL;
}

int
epoll_wait(int set, struct epoll_event *events, int most, int timeout)
{
	if (timeout == 0 && stage->stop_before_look && is_login())
		kill(getpid(), SIGSTOP);
	return syscall(SYS_epoll_pwait, set, events, most, timeout, NULL, 8);
}
