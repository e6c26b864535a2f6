"""The page at `/docs`: what there is, from `/openapi.json`, without anything that is loaded from elsewhere."""

from __future__ import annotations

from typing import Final

__all__ = ["PAGE"]

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LLMAgentOS gateway</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330 }
h2 { font: 600 1rem ui-monospace, monospace; margin: 2rem 0 .25rem; border-top: 1px solid #d5dae2; padding-top: 1rem }
h2 b { color: #0b6 } table { border-collapse: collapse; width: 100% }
td { padding: .15rem 1rem .15rem 0; vertical-align: top } td:first-child { font-family: ui-monospace, monospace }
small { color: #667 }
</style></head><body><h1>LLMAgentOS gateway</h1>
<p><a href="/openapi.json">/openapi.json</a></p><div id="all"></div>
<script>
const add = (to, tag, text) => {
  const e = document.createElement(tag); e.textContent = text || ""; to.append(e); return e }
const row = (table, name, kind, text) => {
  const tr = add(table, "tr"); add(tr, "td", name); add(add(tr, "td"), "small", kind); add(tr, "td", text) }
fetch("/openapi.json").then(r => r.json()).then(api => {
  const all = document.getElementById("all")
  const schema = s => s && s.$ref ? api.components.schemas[s.$ref.split("/").pop()] : s
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, op] of Object.entries(methods)) {
    const h = add(all, "h2"); add(h, "b", method.toUpperCase()); h.append(" " + path)
    add(all, "p", op.description || op.summary)
    const table = add(all, "table")
    for (const p of op.parameters || []) row(table, p.name, p.in, p.description)
    const body = op.requestBody && schema(Object.values(op.requestBody.content)[0].schema)
    const fields = body && schema((body.anyOf || [body])[0]).properties || {}
    for (const [name, f] of Object.entries(fields)) row(table, name, "body", f.description)
  }
})
</script></body></html>
"""
