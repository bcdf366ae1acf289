/** Writes the schema of a benchmark's report where it is published: npm run generate does. */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { format, resolveConfig } from 'prettier';
import { jsonSchema } from '../src/bench/report.js';

const path = fileURLToPath(new URL('../docs/bench-report.schema.json', import.meta.url));
const options = await resolveConfig(path);
writeFileSync(path, await format(JSON.stringify(jsonSchema()), { ...options, parser: 'json' }));
