"""psycopg2 or psycopg 3 as a client: what a program sees of a refused and of a replaced session.

Usage: with_psycopg.py MODULE HOST PORT. For each line of its input, what to do, it prints one line of JSON: what it was
shown, in order. In "idle" it says "in" before that, and goes on at the next line.
"""

import importlib
import json
import sys

driver = importlib.import_module(sys.argv[1])
TARGET = {"host": sys.argv[2], "port": sys.argv[3], "user": "alice", "dbname": "postgres"}


def seen(at, error):
    return {
        "at": at,
        "class": type(error).__name__,
        "sqlstate": getattr(error, "sqlstate", None) or getattr(error, "pgcode", None),
        "message": str(error),
        "detail": error.diag.message_detail if hasattr(error, "diag") else None,
        "hint": error.diag.message_hint if hasattr(error, "diag") else None,
    }


def shown(what):
    try:
        session = driver.connect(**TARGET)
    except driver.Error as error:
        return [seen("login", error)]
    session.autocommit = True
    try:
        session.cursor().execute("SELECT 1")
        if what == "idle":
            print("in", flush=True)
            sys.stdin.readline()
            session.cursor().execute("SELECT 2")
        elif what == "busy":
            session.cursor().execute("SELECT pg_sleep(60)")
        return []
    except driver.Error as error:
        return [seen("query", error)]
    finally:
        session.close()


for line in sys.stdin:
    print(json.dumps(shown(line.strip())), flush=True)
