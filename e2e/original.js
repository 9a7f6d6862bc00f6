// The flow of the system that this one descends from: `/set`, then `/get` ten times with `Value` equal.
//
//   k6 run -e BASE_URL=http://localhost:8080 e2e/original.js
import http from 'k6/http';
import { check } from 'k6';

const base = __ENV.BASE_URL || 'http://localhost:8080';

export const options = {
  scenarios: {
    original: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 100),
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: Number(__ENV.VUS || 50),
    },
  },
  thresholds: { checks: ['rate==1'] },
};

export default function () {
  const key = `original-${__VU}-${__ITER}-${Date.now()}`;
  const value = Math.random().toString(36).slice(2, 7);
  const set = http.get(`${base}/set?key=${key}&value=${value}`, { tags: { name: 'set' } });
  check(set, { set: (answer) => answer.status === 200 });
  for (let i = 0; i < 10; i++) {
    const get = http.get(`${base}/get?key=${key}`, { tags: { name: 'get' } });
    check(get, { 'Value is equal': (answer) => answer.status === 200 && answer.json('Value') === value });
  }
}
