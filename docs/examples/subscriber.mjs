// A camvec consumer in plain Node: no packages, MQTT 3.1.1 over TCP, MessagePack, float16. See docs/mqtt.md.
//   node subscriber.mjs mqtt://[user:password@]host[:port] [camera] [count]
// prints one JSON line per vector. In Node-RED: "mqtt in" (a Buffer), "msgpack", then `unpackVector` in a function node.
import net from "node:net";
import { pathToFileURL } from "node:url";

// MessagePack, as much of it as a camvec message can hold: maps, arrays, strings, bytes, numbers, booleans, nil.
export function decode(buffer) {
  let at = 0;
  const take = (n) => buffer.subarray(at, (at += n));
  const uint = (n) => (n === 8 ? Number(take(8).readBigUInt64BE()) : take(n).readUIntBE(0, n));
  const int = (n) => (n === 8 ? Number(take(8).readBigInt64BE()) : take(n).readIntBE(0, n));
  const map = (n) => Object.fromEntries(Array.from({ length: n }, () => [value(), value()]));
  const array = (n) => Array.from({ length: n }, value);
  function value() {
    const t = uint(1);
    if (t < 0x80) return t;
    if (t < 0x90) return map(t & 15);
    if (t < 0xa0) return array(t & 15);
    if (t < 0xc0) return take(t & 31).toString();
    if (t >= 0xe0) return t - 256;
    switch (t) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return take(uint(1 << (t - 0xc4)));
      case 0xca: return take(4).readFloatBE();
      case 0xcb: return take(8).readDoubleBE();
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return uint(1 << (t - 0xcc));
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return int(1 << (t - 0xd0));
      case 0xd9: case 0xda: case 0xdb: return take(uint(1 << (t - 0xd9))).toString();
      case 0xdc: case 0xdd: return array(uint(2 << (t - 0xdc)));
      case 0xde: case 0xdf: return map(uint(2 << (t - 0xde)));
      default: throw new Error(`MessagePack type 0x${t.toString(16)} is in no camvec message`);
    }
  }
  return value();
}

// IEEE 754 half precision: 1 sign bit, 5 exponent bits, 10 fraction bits.
export function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function unpackVector({ vector, dtype, dim }) {
  if (Array.isArray(vector)) return Float32Array.from(vector); // the JSON form
  return Float32Array.from({ length: dim }, (_, i) =>
    dtype === "f2" ? half(vector.readUInt16LE(2 * i)) : vector.readFloatLE(4 * i));
}

// MQTT 3.1.1: CONNECT, SUBSCRIBE with QoS 0, PINGREQ; calls onMessage(topic, payload).
export function subscribe(url, filter, onMessage) {
  const { hostname, port, username, password } = new URL(url);
  const text = (s) => Buffer.concat([Buffer.from([s.length >> 8, s.length & 255]), s]);
  const packet = (type, ...parts) => {
    const body = Buffer.concat(parts), length = [];
    for (let n = body.length; ; n >>= 7) {
      if (n < 128) { length.push(n); break; }
      length.push((n & 127) | 128);
    }
    return Buffer.concat([Buffer.from([type, ...length]), body]);
  };
  const flags = 2 | (username ? 128 : 0) | (password ? 64 : 0); // 2: clean session
  const login = [username, password].filter(Boolean).map((s) => text(Buffer.from(decodeURIComponent(s))));
  const socket = net.connect(Number(port) || 1883, hostname);
  socket.write(packet(0x10, text(Buffer.from("MQTT")), Buffer.from([4, flags, 0, 60]),
    text(Buffer.from(`node-${process.pid}`)), ...login));
  setInterval(() => socket.write(packet(0xc0)), 30_000).unref();

  let received = Buffer.alloc(0);
  socket.on("data", (chunk) => {
    received = Buffer.concat([received, chunk]);
    for (;;) {
      let length = 0, at = 1, shift = 0, byte = 128;
      for (; byte & 128; shift += 7) {
        if (at >= received.length) return; // the length itself is not all here
        byte = received[at++];
        length += (byte & 127) * 2 ** shift;
      }
      if (received.length < at + length) return;
      const type = received[0] >> 4, body = received.subarray(at, at + length);
      received = received.subarray(at + length);
      if (type === 2 && body[1] !== 0) throw new Error(`the broker refused us, code ${body[1]}`);
      if (type === 2) socket.write(packet(0x82, Buffer.from([0, 1]), text(Buffer.from(filter)), Buffer.from([0])));
      if (type === 9) console.error(`subscribed to ${filter}`);
      if (type === 3) {
        const end = 2 + body.readUInt16BE(0);
        onMessage(body.subarray(2, end).toString(), body.subarray(end));
      }
    }
  });
  return socket;
}

function main(url, camera = "+", count = Infinity) {
  const last = new Map();
  const socket = subscribe(url, `camvec/+/cam/${camera}/embedding/+`, (topic, payload) => {
    const m = payload[0] === 0x7b ? JSON.parse(payload) : decode(payload); // 0x7b is "{": the JSON form
    if (m.v !== 1 || m.spooled) return;
    const before = last.get(topic);
    last.set(topic, m);
    if (!m.vector) return; // a heartbeat: nothing has changed
    const gap = before && before.session === m.session ? m.seq - before.seq - 1 : 0;
    const age_ms = Date.now() - m.captured_at / 1000;
    console.log(JSON.stringify({ camera: m.camera, frame_seq: m.frame_seq, gap, age_ms, vector: [...unpackVector(m)] }));
    if (--count <= 0) socket.end();
  });
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) main(process.argv[2], process.argv[3], Number(process.argv[4] ?? Infinity));
