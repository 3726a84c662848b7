// Node with ws, and the loop of its documentation. NODE_PATH says where ws is.
"use strict";

const { createServer } = require("node:http");
const WebSocket = require("ws");

const rooms = new Map();
const listeners = new WebSocket.WebSocketServer({ noServer: true, perMessageDeflate: false });
const publishers = new WebSocket.WebSocketServer({ noServer: true, perMessageDeflate: false });

listeners.on("connection", (socket, request) => {
  const names = request.url.slice("/listen/".length).split("-");
  for (const name of names) {
    if (!rooms.has(name)) rooms.set(name, new Set());
    rooms.get(name).add(socket);
  }
  socket.on("error", () => {});
  socket.on("close", () => names.forEach((name) => rooms.get(name).delete(socket)));
  socket.send("ready");
});

publishers.on("connection", (socket) => {
  socket.on("message", (data) => {
    for (const client of rooms.get(data.toString("latin1", 0, 6)) ?? []) {
      if (client.readyState === WebSocket.OPEN) client.send(data, { binary: false });
    }
  });
});

const server = createServer((request, response) => response.writeHead(404).end());
server.on("upgrade", (request, socket, head) => {
  const side = request.url === "/publish" ? publishers : listeners;
  side.handleUpgrade(request, socket, head, (client) => side.emit("connection", client, request));
});
server.listen(Number(process.argv[2]), "127.0.0.1");
