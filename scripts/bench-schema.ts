/** Writes the schema of a benchmark's report where it is published: npm run generate does. */
import { fileURLToPath } from 'node:url';
import { jsonSchema } from '../src/bench/report.js';
import { writeFormatted } from './write-formatted.js';

const path = fileURLToPath(new URL('../docs/bench-report.schema.json', import.meta.url));
await writeFormatted(path, JSON.stringify(jsonSchema()));
