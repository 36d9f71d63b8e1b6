"""The HTTP API: OpenAI's fine-tuning endpoints and files, and a short form, over the functions of
`import celora`. `celora api` serves it."""
