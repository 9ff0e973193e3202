"""asyncpg as a client, see with_psycopg.py. Usage: with_asyncpg.py PORT."""

import asyncio
import json
import sys

import asyncpg


def seen(at, error):
    return {
        "at": at,
        "class": type(error).__name__,
        "sqlstate": getattr(error, "sqlstate", None),
        "message": str(error),
        "detail": getattr(error, "detail", None),
        "hint": getattr(error, "hint", None),
    }


async def line():
    return (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip()


async def shown(what):
    try:
        session = await asyncpg.connect(host="127.0.0.1", port=int(sys.argv[1]), user="alice", database="postgres")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return [seen("login", error)]
    messages = []
    session.add_log_listener(lambda _, message: messages.append(seen("event", message)))
    try:
        await session.execute("SELECT 1")
        if what == "idle":
            print("in", flush=True)
            await line()
            while not session.is_closed():
                await asyncio.sleep(0.01)
            await session.execute("SELECT 2")
        elif what == "busy":
            await session.execute("SELECT pg_sleep(60)")
        return messages
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        cause = [seen("its cause", error.__cause__)] if error.__cause__ else []
        return messages + [seen("query", error)] + cause
    finally:
        await session.close()


async def main():
    while what := await line():
        print(json.dumps(await shown(what)), flush=True)


asyncio.run(main())
