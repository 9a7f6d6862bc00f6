// One write and ten checked reads per iteration, against any deployment:
//
//   k6 run -e BASE_URL=http://localhost:8080 e2e/load.js
//
// RATE (iterations a second, 100), DURATION (1m) and VUS (50) may be given.
import http from 'k6/http';
import { check } from 'k6';

const base = __ENV.BASE_URL || 'http://localhost:8080';
const reads = 10;

// How often a write of unknown outcome is sent again. Nobody else writes the key, so that is safe.
const tries = 5;

export const options = {
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 100),
      timeUnit: '1s',
      duration: __ENV.DURATION || '1m',
      preAllocatedVUs: Number(__ENV.VUS || 50),
    },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_duration: ['p(99)<500'],
    dropped_iterations: ['count<50'],
  },
};

export default function () {
  const name = `${__VU}-${__ITER}-${Date.now()}`;
  const url = `${base}/v1/kv/load/${name}`;
  const value = `value of ${name}`;
  let written = http.put(url, value, { tags: { name: 'put' } });
  for (let i = 1; i < tries && (written.status === 0 || written.status >= 500); i++) {
    written = http.put(url, value, { tags: { name: 'put' } });
  }
  if (!check(written, { written: (answer) => answer.status === 200 })) {
    return;
  }
  for (let i = 0; i < reads; i++) {
    const read = http.get(url, { tags: { name: 'get' } });
    check(read, { 'read as written': (answer) => answer.status === 200 && answer.body === value });
  }
}
