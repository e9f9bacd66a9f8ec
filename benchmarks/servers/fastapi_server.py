"""FastAPI with uvicorn on uvloop and httptools; the model is called in the event loop."""

import uvicorn
from fastapi import FastAPI, Request, Response
from model import MEDIA_TYPE, PORT, WORKERS, Model

app = FastAPI(openapi_url=None)
model = Model()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Run one request."""
    tensors = model.read(await request.body())
    return Response(model.write(model.run(tensors)), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_server:app",
        host="127.0.0.1",
        port=PORT,
        workers=WORKERS,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
