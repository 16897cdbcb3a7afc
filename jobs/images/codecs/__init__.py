"""Compressed data of which libraries pass over damage or masks: JPEG and LERC. Knows no reader."""
