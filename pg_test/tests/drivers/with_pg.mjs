// node-postgres as a client, see with_psycopg.py. Usage: with_pg.mjs PORT. With LISTENER=none it does not listen to errors.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const pg = createRequire(process.env.NODE_MODULES)('pg');
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
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'alice', database: 'postgres' });
  const errors = [];
  if (process.env.LISTENER !== 'none') client.on('error', (error) => errors.push(seen('event', error)));
  const ended = new Promise((resolve) => client.once('end', resolve));
  try {
    await client.connect();
  } catch (error) {
    return [...errors, seen('login', error)];
  }
  try {
    await client.query('SELECT 1');
    if (what === 'idle') {
      console.log('in');
      await lines.next();
      await ended;
      await client.query('SELECT 2');
    } else if (what === 'busy') {
      await client.query('SELECT pg_sleep(60)');
    }
  } catch (error) {
    errors.push(seen('query', error));
    await ended;
    return errors;
  }
  await client.end();
  return errors;
}

for (let next; !(next = await lines.next()).done; ) {
  console.log(JSON.stringify(await shown(next.value)));
}
