// postgres.js as a client, see with_psycopg.py. Usage: with_postgres_js.mjs PORT.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const postgres = createRequire(process.env.NODE_MODULES)('postgres');
const [port] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const seen = (at, error) => ({
  at,
  class: error.constructor.name,
  sqlstate: error.code ?? null,
  message: error.message,
  detail: error.detail ?? null,
  hint: error.hint ?? null,
});

async function shown(what) {
  let closed;
  const lost = new Promise((resolve) => (closed = resolve));
  const sql = postgres({ host: '127.0.0.1', port, user: 'alice', database: 'postgres', max: 1, onclose: closed });
  const errors = [];
  const attempt = async (at, query) => {
    try {
      await query;
      return true;
    } catch (error) {
      errors.push(seen(at, error));
      return false;
    }
  };
  // A query is what logs in.
  if ((await attempt('login', sql`SELECT 1`)) && what !== 'login') {
    if (what === 'idle') {
      console.log('in');
      await lines.next();
    } else {
      await attempt('query', sql`SELECT pg_sleep(60)`);
    }
    await lost;
    await attempt('next query', sql`SELECT 2`);
    await attempt('query after that', sql`SELECT 3`);
  }
  // Without a timeout it never returns once a connection was lost in a query.
  await sql.end({ timeout: 1 });
  return errors;
}

for (let next; !(next = await lines.next()).done; ) {
  console.log(JSON.stringify(await shown(next.value)));
}
