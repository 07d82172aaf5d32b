"""Runs that began with a Hugging Face folder: the classes that eval.py opens them with."""

from bridge.chat import ChatTokenizer
from bridge.pretrained import OwnEncoderMLLM, PretrainedMLLM
from engine.wings import Variant

PRETRAINED = {  # do they have the folder's vision encoder, too?
    True: Variant("SigLIP and a decoder from folders", PretrainedMLLM, ChatTokenizer),
    False: Variant("a decoder from a folder", OwnEncoderMLLM, ChatTokenizer),
}
